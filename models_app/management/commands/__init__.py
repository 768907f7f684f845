"""Commands that bring models to the site."""
