"""Where a base model comes from, its NF4 copy and its loading."""
