"""Exchange: what is trained here leaves for other libraries, and what they trained comes in."""
