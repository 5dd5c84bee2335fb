"""`page`: compiles a `.page` file to HTML with a compiler that can be a persistent worker."""

def _page_implementation(ctx):
    output = ctx.actions.declare_file(ctx.label.name + ".html")
    statistics = ctx.actions.declare_file(ctx.label.name + ".statistics.json")

    # What differs from page to page goes into a file: the arguments before it are the same
    # for all pages and become the command line of the worker.
    page_arguments = ctx.actions.args()
    page_arguments.use_param_file("@%s", use_always = True)
    page_arguments.set_param_file_format("multiline")
    page_arguments.add("--source", ctx.file.source)
    page_arguments.add("--output", output)
    page_arguments.add("--statistics", statistics)

    ctx.actions.run(
        mnemonic = "CompilePage",
        progress_message = "Compiling page %s" % ctx.file.source.short_path,
        executable = ctx.executable._compiler,
        arguments = ["--protocol=" + ctx.attr.worker_protocol, page_arguments],
        inputs = [ctx.file.source],
        outputs = [output, statistics],
        use_default_shell_env = True,
        # These are for Bazel's own workers, when it builds on this machine.
        execution_requirements = {
            "supports-workers": "1",
            "requires-worker-protocol": ctx.attr.worker_protocol,
        },
    )
    return [
        DefaultInfo(files = depset([output])),
        OutputGroupInfo(statistics = depset([statistics])),
    ]

_page = rule(
    implementation = _page_implementation,
    attrs = {
        "source": attr.label(allow_single_file = [".page"], mandatory = True),
        "worker_protocol": attr.string(default = "proto", values = ["proto", "json"]),
        "_compiler": attr.label(
            cfg = "exec",
            default = "//compiler:page_compiler",
            executable = True,
        ),
    },
)

def page(name, source, worker_protocol = "proto", exec_properties = {}, **kwargs):
    """Compile `source` to `name`.html.

    The output group "statistics" has `name`.statistics.json: the process that compiled the
    page, and how many pages it had compiled by then.

    Args:
      name: name of the target and of its output.
      source: the `.page` file.
      worker_protocol: "proto" or "json".
      exec_properties: what else the action asks of the machine that runs it.
      **kwargs: attributes that all rules have.
    """

    # These are for a remote server: Bazel keeps the requirements above to itself and sends
    # these as platform properties of the action.
    properties = {"persistentWorkerKey": "page_compiler"}
    if worker_protocol != "proto":
        properties["persistentWorkerProtocol"] = worker_protocol
    properties.update(exec_properties)
    _page(
        name = name,
        source = source,
        worker_protocol = worker_protocol,
        exec_properties = properties,
        **kwargs
    )
