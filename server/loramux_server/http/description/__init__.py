"""What operations take and give, and the OpenAPI document made of it."""
