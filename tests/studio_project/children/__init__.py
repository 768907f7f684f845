"""Programs that the tests start as children."""
