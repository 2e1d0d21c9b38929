//! The `spigate` command: reads the command line, calls the library, maps the result to an exit
//! code.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Measured against glibc's: a tenth less CPU for a proxied request.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    spigate::cli::main()
}
