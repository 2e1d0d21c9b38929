"""Shows a build that takes notes what the gateway's work is like, for a build that knows it.

    python3 bench/train.py SPIGATE LOAD

Each way that a request can go is loaded for a moment, refused and replayed ones among them, so that
none is made faster at another's cost. Nothing is measured.
"""

import sys

import servers
from load import Load
from orders import PUBLISHED, flip

SECONDS = 3


def main(spigate, load):
    with servers.House({"spigate": spigate, "load": load}) as house:
        backend = house.backend()
        headers = house.spigate("headers", backend)
        durable = house.spigate("durable", backend, once=True)
        refused = {"targets": [f"/spi?{flip(PUBLISHED)}"], "status": 401, "contains": '"code":"signature_invalid"'}
        for server, asked in (
            (headers, {}),
            (headers, refused),
            (house.spigate("json", backend, send="json", access=True), {}),
            (house.spigate("query", backend, send="query"), {}),
            (durable, {}),
            (durable, {"connections": 256, "orders": 20_000}),
        ):
            with Load(house, server, **asked) as load_of_it:
                load_of_it.slice(SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
