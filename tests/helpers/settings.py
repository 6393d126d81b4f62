"""Settings of a training run, by section, for tests that change some of them."""


def with_changes(settings, data, changes):
    """Copy the settings, with a text file as data; a change is named section__field."""
    sections = {name: dict(fields) for name, fields in settings.items()}
    sections["data"] = {"source": "text", "path": str(data)}
    for name, value in changes.items():
        section, field = name.split("__")
        sections[section][field] = value
    return sections
