"""Leave sphinx-thebe out: Jupyter Book loads it unasked, and its scripts, which nobody uses here,
are put twice on each page and fail there."""


def leave_out(app, config) -> None:
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)
    styles = app.registry.css_files
    styles[:] = [style for style in styles if style[0] != "sphinx-thebe.css"]


def setup(app) -> dict:
    app.connect("config-inited", leave_out)
    return {"parallel_read_safe": True}
