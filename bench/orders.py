"""The platform's side of a measurement: signed targets, by the protocol and not by spigate's code.

Only the dialect `qingcloud-appcenter` is spoken: `GET`, a newline, the pairs sorted by name and
percent-encoded; HMAC-SHA256 under the key as it is printed; base64.
"""

import base64
import datetime
import hashlib
import hmac
import urllib.parse

# The key of the platform's published examples.
KEY = "2UNHjKQE9u6A4np4kI++o5iXPcn3cA6yZjDEdHN3iXfDFwCRaKtCQHSLT9HdeF+1"
# The published create example: 410 bytes, signed by the platform.
PUBLISHED = (
    "user_id=usr-xx1xx&signature=puc6rZedSRTUTgSWoIX63eYb9ZM3QRuBWS1Jows9I5E%3D&action=CreateAppInstance"
    "&time_stamp=2021-06-23T07%3A26%3A13Z&spec=5aWX6aSQ5ZCN56ewMQ%3D%3D&cloud_info=eyJhcGlfc2VydmVyIjogImFwaS5xaW5"
    "nY2xvdWQuY29tOjc3NzciLCAic3NvX3NlcnZlciI6ICJzc28ucWluZ2Nsb3VkLmNvbSJ9&period=1_day&app_id=app-xxxxx"
)
# The fields of that example, but time and signature.
CREATE = {
    "action": "CreateAppInstance",
    "app_id": "app-xxxxx",
    "cloud_info": "eyJhcGlfc2VydmVyIjogImFwaS5xaW5nY2xvdWQuY29tOjc3NzciLCAic3NvX3NlcnZlciI6ICJzc28ucWluZ2Nsb3VkLmNvbSJ9",
    "period": "1_day",
    "spec": "5aWX6aSQ5ZCN56ewMQ==",
    "user_id": "usr-xx1xx",
}


def now(offset=0):
    """The platform's notation of the time, `offset` seconds from now."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def quote(text):
    return urllib.parse.quote(text, safe="-_.~")


def sign(fields, key=KEY):
    """The query of a request with these fields; a time is among them."""
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in sorted(fields.items()))
    mac = hmac.new(key.encode(), f"GET\n{query}".encode(), hashlib.sha256).digest()
    return f"{query}&signature={quote(base64.b64encode(mac).decode())}"


def flip(query):
    """The same query with another signature of the same form."""
    at = query.index("signature=") + len("signature=")
    return query[:at] + ("B" if query[at] == "A" else "A") + query[at + 1 :]
