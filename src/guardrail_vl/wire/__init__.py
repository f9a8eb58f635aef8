"""The JSON of providers' HTTP APIs: requests and replies to turns, decisions to replies, event streams. Pure."""
