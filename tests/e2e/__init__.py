"""Real processes: server, Redis, worker, children with torch, and a browser."""
