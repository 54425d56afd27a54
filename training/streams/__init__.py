"""The event stream: WebSocket and server-sent events."""
