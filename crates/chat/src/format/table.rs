//! The syntaxes that models write tool calls in.
//!
//! Each line is a fact about published templates; `template` says by which texts a template is
//! recognised. The first that fits wins, so the special come before the general.

/// How a model writes tool calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    /// For tests and debugging.
    pub(crate) name: &'static str,
    /// All of these occur in the template.
    pub(crate) template: &'static [&'static str],
    /// Around all calls; empty if nothing is.
    pub(crate) group: (&'static str, &'static str),
    /// Around each call; empty if nothing is.
    pub(crate) call: (&'static str, &'static str),
    /// What is between those.
    pub(crate) body: Body,
    /// Whether calls may begin in the midst of reasoning.
    pub(crate) interrupts: bool,
    /// The name that stands for no call, but for content; or empty.
    pub(crate) content_name: &'static str,
}

impl Syntax {
    /// Whether text in this syntax is a call whatever tool it names. Where a model shows no syntax
    /// of its own, only calls of tools that there are count.
    pub(crate) fn is_sure(&self) -> bool {
        !self.template.is_empty()
    }
}

/// How name and arguments are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// A JSON object with a name and arguments, or a list of them.
    Json {
        /// The key of the name. Empty if the object is `{NAME: ARGUMENTS}`.
        name: &'static str,
        /// The key of the arguments.
        arguments: &'static str,
        /// The key of the id, or empty.
        id: &'static str,
        /// Whether it is a list even of one.
        list: bool,
    },
    /// The name, and the arguments as a JSON object.
    Named {
        /// Before the name, behind the call's opening; what comes before is the id, if anything.
        before: &'static str,
        /// Between the name and an id that may follow, or empty.
        id: &'static str,
        /// Before the arguments.
        head_end: &'static str,
        /// Behind the arguments, before the call's close.
        tail: &'static str,
    },
    /// The name, and a tagged text for each argument.
    Tagged(Tags),
    /// `name(key=value, ..)` in Python's syntax, in brackets.
    Python,
    /// `name{key:value, ..}` with texts in `<|"|>`.
    Gemma,
}

/// How tagged arguments are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tags {
    /// Behind the call's name.
    pub(crate) name_end: &'static str,
    /// Before an argument's name.
    pub(crate) open: &'static str,
    /// Behind an argument's name.
    pub(crate) key_end: &'static str,
    /// Before the value; attributes may come between.
    pub(crate) value_begin: &'static str,
    /// Behind the value.
    pub(crate) value_end: &'static str,
    /// Whether each value stands in lines of its own.
    pub(crate) padded: bool,
    /// Whether texts may stand in `<![CDATA[` and `]]>`.
    pub(crate) cdata: bool,
    /// An attribute that says that the value is a text, and one that says that it is JSON.
    pub(crate) kinds: Option<(&'static str, &'static str)>,
}

const PARAMETER: Tags = Tags {
    name_end: ">",
    open: "<parameter=",
    key_end: ">",
    value_begin: "",
    value_end: "</parameter>",
    padded: true,
    cdata: false,
    kinds: None,
};

const INVOKE: Tags = Tags {
    name_end: "\">",
    open: "<parameter name=\"",
    key_end: "\"",
    value_begin: ">",
    value_end: "</parameter>",
    padded: false,
    cdata: false,
    kinds: None,
};

const ARG_KEY: Tags = Tags {
    name_end: "\n",
    open: "<arg_key>",
    key_end: "</arg_key>",
    value_begin: "<arg_value>",
    value_end: "</arg_value>",
    padded: false,
    cdata: false,
    kinds: None,
};

const DSML: Tags = Tags {
    open: "<｜DSML｜parameter name=\"",
    value_end: "</｜DSML｜parameter>",
    kinds: Some((" string=\"true\"", " string=\"false\"")),
    ..INVOKE
};

const fn json(name: &'static str, arguments: &'static str) -> Body {
    Body::Json { name, arguments, id: "", list: false }
}

const fn list(name: &'static str, arguments: &'static str, id: &'static str) -> Body {
    Body::Json { name, arguments, id, list: true }
}

const NOTHING: (&str, &str) = ("", "");

const fn syntax(
    name: &'static str,
    template: &'static [&'static str],
    group: (&'static str, &'static str),
    call: (&'static str, &'static str),
    body: Body,
) -> Syntax {
    Syntax { name, template, group, call, body, interrupts: false, content_name: "" }
}

/// What Qwen 2.5 and many others learned after Hermes; also what we ask of models that have no
/// tools of their own.
pub(crate) static HERMES: Syntax = syntax(
    "hermes",
    &["<tool_call>"],
    ("<tool_call>\n", "\n</tool_call>"),
    NOTHING,
    json("name", "arguments"),
);

/// JSON without any mark, at the beginning of the answer.
pub(crate) static BARE: Syntax = syntax("bare", &[], NOTHING, NOTHING, json("name", "parameters"));

/// JSON in a fence, which models write that were told of tools in some way.
pub(crate) static FENCED: Syntax =
    syntax("fenced", &[], ("```json\n", "\n```"), NOTHING, json("name", "arguments"));

/// Command R as its makers document it; the template puts a line break before the fence.
pub(crate) static COMMAND_R: Syntax = syntax(
    "command-r",
    &[],
    ("Action: ```json\n", "\n```"),
    NOTHING,
    list("tool_name", "parameters", ""),
);

/// Python's calls without any mark, at the beginning of the answer.
pub(crate) static PYTHON: Syntax = syntax("python", &[], NOTHING, NOTHING, Body::Python);

/// Mistral before version 11 of its tokenizer.
pub(crate) static OLD_MISTRAL: Syntax = syntax(
    "mistral",
    &["[TOOL_CALLS]"],
    ("[TOOL_CALLS]", ""),
    NOTHING,
    list("name", "arguments", "id"),
);

/// gpt-oss: channels, see `parse/channel.rs`. The calls' header is only written here.
pub(crate) static HARMONY: Syntax = syntax(
    "harmony",
    &["<|channel|>", "<|message|>", "<|start|>"],
    NOTHING,
    ("<|channel|>commentary to=functions.", "<|call|>"),
    Body::Named { before: "", id: "", head_end: " <|constrain|>json<|message|>", tail: "" },
);

/// In the order in which they are tried.
pub(crate) static SYNTAXES: &[&Syntax] = &[
    &HARMONY,
    // Functionary v3.2, where an answer in words is a call of `all`.
    &Syntax {
        content_name: "all",
        ..syntax(
            "functionary-v3.2",
            &[">>>all"],
            NOTHING,
            (">>>", ""),
            Body::Named { before: "", id: "", head_end: "\n", tail: "" },
        )
    },
    // DeepSeek V3.2 and V4.
    &syntax(
        "deepseek-dsml-calls",
        &["DSML", "function_calls"],
        ("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"),
        ("<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"),
        Body::Tagged(DSML),
    ),
    &syntax(
        "deepseek-dsml",
        &["DSML", "tool_calls"],
        ("<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"),
        ("<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"),
        Body::Tagged(DSML),
    ),
    // DeepSeek V3 and R1, whose arguments stand in a fence; V3.1, whose do not.
    &Syntax {
        interrupts: true,
        ..syntax(
            "deepseek-v3",
            &["<｜tool▁calls▁begin｜>", "```json"],
            ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
            ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
            Body::Named {
                before: "function<｜tool▁sep｜>",
                id: "",
                head_end: "\n```json\n",
                tail: "\n```",
            },
        )
    },
    &Syntax {
        interrupts: true,
        ..syntax(
            "deepseek-v3.1",
            &["tool▁calls▁begin"],
            ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
            ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
            Body::Named { before: "", id: "", head_end: "<｜tool▁sep｜>", tail: "" },
        )
    },
    &Syntax {
        interrupts: true,
        ..syntax(
            "kimi-k2",
            &["<|tool_calls_section_begin|>"],
            ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            ("<|tool_call_begin|>", "<|tool_call_end|>"),
            Body::Named {
                before: "functions.",
                id: ":",
                head_end: "<|tool_call_argument_begin|>",
                tail: "",
            },
        )
    },
    &syntax(
        "kimi-k3",
        &["<|open|>", "<|close|>"],
        ("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        ("<|open|>call tool=\"", "<|close|>call<|sep|>"),
        Body::Tagged(Tags {
            name_end: "<|sep|>",
            open: "<|open|>argument key=\"",
            key_end: "\"",
            value_begin: "<|sep|>",
            value_end: "<|close|>argument<|sep|>",
            padded: false,
            cdata: false,
            kinds: Some((" type=\"string\"", " type=\"object\"")),
        }),
    ),
    &syntax(
        "solar",
        &["<|tool_call:begin|>"],
        ("<|tool_calls|>", "<|calls|>"),
        ("<|tool_call:begin|>", "<|tool_call:end|>"),
        Body::Named {
            before: "<|tool_call:name|>",
            id: "",
            head_end: "<|tool_call:args|>",
            tail: "",
        },
    ),
    // Mistral since version 11 of its tokenizer.
    &syntax(
        "mistral-args",
        &["[TOOL_CALLS]", "[ARGS]"],
        NOTHING,
        ("[TOOL_CALLS]", ""),
        Body::Named { before: "", id: "[CALL_ID]", head_end: "[ARGS]", tail: "" },
    ),
    &OLD_MISTRAL,
    &syntax(
        "minimax-m2",
        &["<minimax:tool_call>"],
        ("<minimax:tool_call>\n", "</minimax:tool_call>"),
        ("<invoke name=\"", "</invoke>"),
        Body::Tagged(INVOKE),
    ),
    &syntax(
        "seed",
        &["<seed:tool_call>"],
        ("<seed:tool_call>\n", "</seed:tool_call>"),
        ("<function=", "</function>"),
        Body::Tagged(Tags { padded: false, ..PARAMETER }),
    ),
    &syntax(
        "hunyuan",
        &["<arg_key{}>", ":opensource"],
        ("<tool_calls:opensource>\n", "</tool_calls:opensource>"),
        ("<tool_call:opensource>", "</tool_call:opensource>"),
        Body::Tagged(Tags {
            name_end: "<tool_sep:opensource>",
            open: "<arg_key:opensource>",
            key_end: "</arg_key:opensource>",
            value_begin: "<arg_value:opensource>",
            value_end: "</arg_value:opensource>",
            ..ARG_KEY
        }),
    ),
    // GLM 4.5 and later, Ling 3, Laguna, Spark.
    &syntax("glm", &["<arg_key>"], NOTHING, ("<tool_call>", "</tool_call>"), Body::Tagged(ARG_KEY)),
    // Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5.
    &syntax(
        "qwen3-coder",
        &["<function=", "<parameter=", "<tool_call>"],
        ("<tool_call>\n", "</tool_call>"),
        ("<function=", "</function>"),
        Body::Tagged(PARAMETER),
    ),
    &syntax(
        "minicpm5",
        &["<function name=", "<param name="],
        NOTHING,
        ("<function name=\"", "</function>"),
        Body::Tagged(Tags { open: "<param name=\"", value_end: "</param>", cdata: true, ..INVOKE }),
    ),
    &syntax(
        "functionary-v3.1",
        &["<function="],
        NOTHING,
        ("<function=", "</function>"),
        Body::Named { before: "", id: "", head_end: ">", tail: "" },
    ),
    // Command R7B and A.
    &syntax(
        "command-r7b",
        &["<|START_ACTION|>"],
        ("<|START_ACTION|>", "<|END_ACTION|>"),
        NOTHING,
        list("tool_name", "parameters", "tool_call_id"),
    ),
    &syntax(
        "command-r",
        &["Action:", "tool_name", "```json"],
        ("Action:\n```json\n", "\n```"),
        NOTHING,
        list("tool_name", "parameters", ""),
    ),
    &syntax(
        "nemotron",
        &["<TOOLCALL>"],
        ("<TOOLCALL>", "</TOOLCALL>"),
        NOTHING,
        list("name", "arguments", ""),
    ),
    &syntax(
        "apertus",
        &["<|tools_prefix|>"],
        ("<|tools_prefix|>", "<|tools_suffix|>"),
        NOTHING,
        Body::Json { name: "", arguments: "", id: "", list: true },
    ),
    // LFM2; its first templates name the list of tools only.
    &syntax(
        "lfm2",
        &["<|tool_call_start|>"],
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        NOTHING,
        Body::Python,
    ),
    &syntax(
        "lfm2",
        &["<|tool_list_start|>"],
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        NOTHING,
        Body::Python,
    ),
    &syntax(
        "llama4",
        &["<|python_start|>"],
        ("<|python_start|>", "<|python_end|>"),
        NOTHING,
        Body::Python,
    ),
    &syntax(
        "gemma4",
        &["<|tool_call>call:"],
        NOTHING,
        ("<|tool_call>call:", "<tool_call|>"),
        Body::Gemma,
    ),
    // Apriel; MiniMax M1, which writes one object per line.
    &syntax(
        "apriel",
        &["<tool_calls>["],
        ("<tool_calls>", "</tool_calls>"),
        NOTHING,
        list("name", "arguments", "id"),
    ),
    &syntax(
        "minimax-m1",
        &["<tool_calls>"],
        ("<tool_calls>\n", "\n</tool_calls>"),
        NOTHING,
        json("name", "arguments"),
    ),
    // Phi-4-mini; Granite 3, which writes no end.
    &syntax(
        "phi4",
        &["<|tool_call|>", "<|/tool_call|>"],
        ("<|tool_call|>", "<|/tool_call|>"),
        NOTHING,
        list("name", "arguments", ""),
    ),
    &syntax(
        "granite",
        &["<|tool_call|>"],
        ("<|tool_call|>", ""),
        NOTHING,
        list("name", "arguments", ""),
    ),
    &syntax(
        "firefunction",
        &["functools["],
        (" functools", ""),
        NOTHING,
        list("name", "arguments", ""),
    ),
    &syntax(
        "gigachat",
        &["<|function_call|>"],
        ("<|function_call|>", ""),
        NOTHING,
        json("name", "arguments"),
    ),
    &syntax(
        "gigachat3",
        &["function call", "<|message_sep|>"],
        ("<|message_sep|>\n\nfunction call<|role_sep|>\n", ""),
        NOTHING,
        json("name", "arguments"),
    ),
    &HERMES,
    // Llama 3.1 and later: with the mark for its built-in tools, without for others.
    &syntax(
        "llama3",
        &["<|python_tag|>"],
        ("<|python_tag|>", ""),
        NOTHING,
        json("name", "parameters"),
    ),
];
