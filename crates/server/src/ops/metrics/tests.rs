use super::text::Text;
use super::*;

fn summary(finish: Finish, generated_tokens: usize) -> Summary {
    Summary {
        finish,
        prompt_tokens: 10,
        reused_tokens: 4,
        generated_tokens,
        reasoning_tokens: 0,
        context: Vec::new(),
        load_time: Duration::ZERO,
        queue_time: Duration::ZERO,
        prompt_time: Duration::from_millis(100),
        ttft: Duration::from_millis(120),
        decode_time: Duration::from_millis(30 * generated_tokens as u64),
        total_time: Duration::from_secs(1),
    }
}

#[test]
fn the_format_is_that_of_prometheus() {
    let mut text = Text::default();
    let mut counter = text.counter("a_total", "Some help.");
    counter.value(&[("x", "quote \" slash \\ line \n end"), ("y", "2")], 7).value(&[], 8);
    let mut histogram = Histogram::token_seconds();
    histogram.add(Duration::from_millis(2));
    histogram.add(Duration::from_millis(15));
    histogram.add(Duration::from_secs(100));
    text.histogram("b_seconds", "More.").distribution(&[("z", "1")], &histogram);
    let text = text.finish();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "# HELP a_total Some help.",
            "# TYPE a_total counter",
            r#"a_total{x="quote \" slash \\ line \n end",y="2"} 7"#,
            "a_total 8",
        ]
    );
    // A bound includes what is just as large, and each bucket all those below it.
    let expected = [
        r#"b_seconds_bucket{z="1",le="0.002"} 1"#,
        r#"b_seconds_bucket{z="1",le="0.01"} 1"#,
        r#"b_seconds_bucket{z="1",le="0.02"} 2"#,
        r#"b_seconds_bucket{z="1",le="30"} 2"#,
        r#"b_seconds_bucket{z="1",le="+Inf"} 3"#,
        r#"b_seconds_count{z="1"} 3"#,
    ];
    for line in expected {
        assert!(lines.contains(&line), "{line} is missing in {text}");
    }
    assert!(text.contains("b_seconds_sum{z=\"1\"} 100.017"));
}

#[test]
fn answers_add_up() {
    let metrics = Metrics::default();
    metrics.answer_ended("m", &summary(Finish::Stop, 11));
    metrics.answer_ended("m", &summary(Finish::StopText("x".to_owned()), 1));
    metrics.answer_ended("m", &summary(Finish::Cancelled, 0));
    metrics.answer_broke_off("m");
    metrics.embedded("m", 5);
    assert_eq!(metrics.answered(), 5);
    let answers = lock(&metrics.answers);
    assert_eq!(answers.prompt_tokens, 35);
    assert_eq!(answers.reused_tokens, 12);
    assert_eq!(answers.generated_tokens, 12);
    // An answer without a token has no first one, and one token has none after it.
    assert_eq!(answers.ttft.count(), 2);
    assert_eq!(answers.token.count(), 1);
    assert_eq!(answers.load.count(), 0);
    assert_eq!(answers.ended.len(), 4);
}

#[test]
fn what_goes_on_is_counted_until_it_is_dropped() {
    let metrics = Metrics::default();
    let first = metrics.begin_waiting();
    let second = metrics.begin_waiting();
    assert_eq!(metrics.waiting(), 2);
    drop(first);
    let active = metrics.begin_answering();
    assert_eq!((metrics.waiting(), metrics.active()), (1, 1));
    drop((second, active));
    assert_eq!((metrics.waiting(), metrics.active()), (0, 0));
}
