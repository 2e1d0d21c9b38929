//! The `spigate` command: reads the command line, calls the library, maps the result to an exit
//! code.

use std::process::ExitCode;

fn main() -> ExitCode {
    spigate::cli::main()
}
