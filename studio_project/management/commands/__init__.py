"""Commands an administrator runs."""
