"""The server's outermost layer: what is judged while a request still arrives, before anything of its body is kept."""
