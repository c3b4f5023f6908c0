//! A hostile template ends in an error, whatever it tries.

use chrono::DateTime;
use hypura_chat::{ChatError, ChatTemplate, TEMPLATE_BYTES_MAX};
use serde_json::Map;

fn render(source: &str) -> Result<String, ChatError> {
    let now = DateTime::parse_from_rfc3339("2025-03-07T09:05:03+00:00").unwrap();
    ChatTemplate::new(source, "", "")?.render_names(&Map::new(), now)
}

#[track_caller]
fn refuse(source: &str) {
    let outcome = render(source).map(|text| text.len());
    assert!(outcome.is_err(), "{outcome:?}: {}", source.get(..200).unwrap_or(source));
}

/// Does `step` with `ns.x` many times.
fn repeated(start: &str, step: &str) -> String {
    format!(
        "{{% set ns = namespace(x={start}) %}}{{% for i in range(90000) %}}{{% set ns.x = {step} %}}\
         {{% endfor %}}{{{{ ns.x | length }}}}"
    )
}

#[test]
fn endless_loops_end() {
    refuse(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a %}{% endfor %}{% endfor %}",
    );
    refuse("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
    refuse("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
    refuse("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}");
    refuse("{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}");
}

#[test]
fn texts_can_not_grow_without_bound() {
    for step in [
        "ns.x + ns.x",
        "ns.x ~ ns.x",
        "ns.x * 2",
        "[ns.x, ns.x] | join",
        "ns.x.join([ns.x, ns.x])",
        "ns.x | replace('a', 'aa')",
        "ns.x.replace('a', 'aa')",
        "'%s%s' % (ns.x, ns.x)",
        "'{0}{0}'.format(ns.x)",
        "ns.x | tojson",
        "ns.x | indent(9999, true)",
        "ns.x | escape ~ '<'",
        "ns.x ~ ns.x[::-1]",
    ] {
        refuse(&repeated("'aaaa<'", step));
    }
    refuse(
        "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set b %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = b %}{% endfor %}",
    );
    refuse(
        "{% set ns = namespace(x='aa') %}{% macro m() %}{{ ns.x }}{{ ns.x }}{% endmacro %}{% for i in range(99) %}{% set ns.x = m() %}{% endfor %}",
    );
    for expression in [
        "'a' * 10 ** 12",
        "'a' * 9223372036854775807",
        "'a'.ljust(10 ** 12)",
        "'a'.zfill(10 ** 12)",
        "'a' | center(10 ** 12)",
        "'a\\na' | indent(10 ** 12)",
        "'%1000000000d' % 1",
        "'%*d' % (1000000000, 1)",
        "'{:1000000000}'.format(1)",
        "{'a': 1} | tojson(indent=10 ** 12)",
        "[0] * 10 ** 12",
        "range(10 ** 12) | list",
        "10 ** 1000000",
    ] {
        refuse(&format!("{{{{ {expression} }}}}"));
    }
}

#[test]
fn values_can_not_grow_without_bound() {
    for step in [
        "ns.x + ns.x",
        "[ns.x, ns.x]",
        "[ns.x]",
        "{'a': ns.x}",
        "dict(a=ns.x)",
        "[ns.x] | list",
        "ns.x | map('list') | list + ns.x",
        "[ns.x] | groupby('a')",
        "ns.x + ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 1000) | list",
    ] {
        refuse(&repeated("[[1], [2]]", step));
    }
    // Small, and endless when written.
    let nested = "{% set x0 = [1, 1] %}".to_owned()
        + &(1..60).map(|i| format!("{{% set x{i} = [x{0}, x{0}] %}}", i - 1)).collect::<String>();
    refuse(&nested);
    let opened = (1..60).map(|i| format!("{{% with x{i} = [x{0}, x{0}] %}}", i - 1));
    let opened = "{% with x0 = [1, 1] %}".to_owned() + &opened.collect::<String>();
    let closed = "{% endwith %}".repeat(60);
    for write in ["x59 | tojson", "x59 | string", "x59 == x59", "x59 in [x59]", "x59 | sort", "x59"]
    {
        refuse(&format!("{opened}{{{{ {write} }}}}{closed}"));
    }
    refuse("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}");
    refuse("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | tojson }}");
}

#[test]
fn sources_are_bounded() {
    refuse(&" ".repeat(TEMPLATE_BYTES_MAX + 1));
    let deep = |open: &str, close: &str| {
        format!("{{{{ {}1{} }}}}", open.repeat(50_000), close.repeat(50_000))
    };
    refuse(&deep("(", ")"));
    refuse(&deep("[", "]"));
    refuse(&deep("{1:", "}"));
    refuse(&deep("-", ""));
    refuse(&deep("", "|abs"));
    refuse(&deep("", ".a"));
    refuse(&deep("", "[0]"));
    refuse(&deep("f(", ")"));
    refuse(&deep("", " if 1 else 1"));
    refuse(&"{% if 1 %}".repeat(50_000));
    let blocks = "{% for a in [1] %}".repeat(5_000) + &"{% endfor %}".repeat(5_000);
    refuse(&blocks);
    // Long, and flat: fine.
    assert_eq!(render(&deep("", " + 1")).unwrap(), "50001");
    assert_eq!(render(&deep("", " ~ ''")).unwrap(), "1");
    assert_eq!(render(&deep("not ", "")).unwrap(), "True");
}
