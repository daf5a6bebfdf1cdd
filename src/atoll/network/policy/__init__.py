"""What guests may reach: rules, and who has which name; without any I/O."""
