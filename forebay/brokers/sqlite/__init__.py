"""The embedded queue. Import what you need from its modules; this one stays light for the settings."""
