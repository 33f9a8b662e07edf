"""The web page: its requests (`service`), its fields (`fields`) and events (`layout`), and the server (`serving`)."""
