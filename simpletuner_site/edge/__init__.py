"""The server's outermost layer. It checks a request while it arrives, before its body is read."""
