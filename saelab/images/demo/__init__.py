"""The packaged photos of the quickstart: two Debian packages, fetched and unpacked without root."""
