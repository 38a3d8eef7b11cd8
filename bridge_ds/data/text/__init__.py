"""From text to what the models read: conventions, chat templates, truncation, languages."""
