//! The report as one HTML page that needs nothing else: styles and plots are inside.
//!
//! Invariant: every text that comes from elsewhere (names, versions, settings, errors) is escaped; the
//! plots show nothing that the tables beside them do not say.

mod plot;

use std::fmt::Write;

use super::catalogue::{CPU_PER_GIB, WORKLOADS};
use super::report::{Report, Row};
use super::spread::Spread;

/// The page. Writing to a String cannot fail.
pub(crate) fn page(report: &Report) -> String {
    let mut out = String::from(HEAD);
    let held = report.goals.iter().filter(|goal| goal.held).count();
    let _ = write!(
        out,
        "<header><h1>WarpDrive bench</h1><p>warpdrive {} &middot; {} &middot; {} repetitions \
         &middot; {:.0} s{}</p>",
        escape(&report.version),
        escape(&report.began),
        report.repetitions,
        report.seconds,
        report.cut_short.as_ref().map_or(String::new(), |why| format!(
            " &middot; <strong class=bad>cut short: {}</strong>",
            escape(why)
        ))
    );
    if !report.goals.is_empty() {
        let missed = report.goals.len() - held;
        let class = if missed == 0 { "good" } else { "bad" };
        let _ = write!(
            out,
            "<p class=score><b>{held}</b> goals held <b class={class}>{missed}</b> missed</p>"
        );
    }
    out.push_str("</header><main>");
    plots(&mut out, report);
    goals(&mut out, report);
    figures(&mut out, report);
    facts(&mut out, report);
    targets(&mut out, report);
    skipped(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

/// What a bar shows of a row.
type Figure = fn(&Row) -> Option<&Spread>;

/// Rows of a workload that can be drawn on one axis.
fn plots(out: &mut String, report: &Report) {
    let legend = plot::legend(report.rows.iter());
    let panels: [(&str, &str, Figure, &str); 3] = [
        (
            "Speed, as a share of the reference",
            "Bars are medians, whiskers the smallest and the largest; the line is the reference \
             read next to it (1.0), a triangle the goal. Longer is better.",
            |row| {
                // A share of an optimum is a ratio already.
                let share = row.unit.contains(" / ").then_some(&row.value);
                row.ratio.as_ref().or(share).filter(|_| row.higher_is_better)
            },
            "",
        ),
        (
            "Cost: seconds of CPU for a GiB",
            "Worker and holder together, or the whole server; the reader's own time is not in it. \
             Shorter is better; the scale is logarithmic.",
            |row| row.figure(CPU_PER_GIB),
            "log",
        ),
        (
            "Less is better",
            "Bytes fetched, requests, pauses, memory: each in its own unit; the scale is logarithmic.",
            |row| (!row.higher_is_better).then_some(&row.value),
            "log",
        ),
    ];
    out.push_str("<section>");
    out.push_str(&legend);
    for (title, about, figure, scale) in panels {
        let drawn = plot::bars(&groups(report, figure), &report.goals, scale == "log");
        if !drawn.is_empty() {
            let _ = write!(out, "<h2>{title}</h2><p class=about>{about}</p>{drawn}");
        }
    }
    out.push_str("</section>");
}

/// For each workload the targets that have a figure.
fn groups(report: &Report, figure: Figure) -> Vec<plot::Group<'_>> {
    let mut names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
    names.push("memory");
    let mut groups = Vec::new();
    for name in names {
        let rows = report.rows.iter().filter(|row| row.workload == name);
        let bars: Vec<_> = rows.filter_map(|row| Some((row, figure(row)?))).collect();
        if !bars.is_empty() {
            groups.push(plot::Group { name, bars });
        }
    }
    groups
}

fn goals(out: &mut String, report: &Report) {
    if report.goals.is_empty() {
        return;
    }
    out.push_str("<section><h2>Goals of the design</h2><table><thead><tr><th>workload<th>target<th>figure<th>wanted<th class=n>measured<th></thead><tbody>");
    for goal in &report.goals {
        let (class, text) = if goal.held { ("good", "held") } else { ("bad", "missed") };
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td class=n>{}<td class={class}>{text}",
            escape(&goal.workload),
            escape(&goal.target),
            escape(&goal.what),
            escape(&goal.goal),
            goal.measured.text()
        );
    }
    out.push_str("</tbody></table></section>");
}

fn figures(out: &mut String, report: &Report) {
    out.push_str("<section><h2>All figures</h2><p class=about>Median (smallest to largest).</p><table><thead><tr><th>workload<th>target<th class=n>measured<th>unit<th class=n>reference<th class=n>ratio<th>and</thead><tbody>");
    let mut last = "";
    for row in &report.rows {
        let about = WORKLOADS.iter().find(|one| one.name == row.workload);
        let about = about.map_or("", |one| one.about);
        let class = if row.workload == last { "" } else { " class=first" };
        last = &row.workload;
        let reference = row.reference.as_ref().zip(row.against.as_ref());
        let reference = reference
            .map_or(String::new(), |(spread, name)| format!("{} {}", escape(name), spread.text()));
        let mut more: Vec<String> =
            row.more.iter().map(|(name, s)| format!("{} {}", escape(name), s.text())).collect();
        if !row.note.is_empty() {
            more.push(escape(&row.note));
        }
        let _ = write!(
            out,
            "<tr{class}><td class=name title=\"{}\">{}<td class=name>{}<td class=n>{}<td>{}<td class=n>{reference}<td class=n>{}<td>{}",
            escape(about),
            escape(&row.workload),
            escape(&row.target),
            row.value.text(),
            escape(&row.unit),
            row.ratio.as_ref().map_or(String::new(), Spread::text),
            more.join(" &middot; ")
        );
    }
    out.push_str("</tbody></table></section>");
}

fn facts(out: &mut String, report: &Report) {
    out.push_str("<section class=columns>");
    for (title, facts) in [("Machine", &report.machine), ("Conditions", &report.conditions)] {
        let _ = write!(out, "<div><h2>{title}</h2><table>");
        for (name, value) in facts {
            let _ = write!(out, "<tr><th>{}<td>{}", escape(name), escape(value));
        }
        out.push_str("</table></div>");
    }
    out.push_str("</section><section><h2>Workloads</h2><table>");
    for workload in WORKLOADS {
        if report.rows.iter().any(|row| row.workload == workload.name) {
            let _ = write!(out, "<tr><th>{}<td>{}", workload.name, escape(workload.about));
        }
    }
    out.push_str("</table></section>");
}

fn targets(out: &mut String, report: &Report) {
    out.push_str("<section><h2>Targets and their settings</h2>");
    for target in &report.targets {
        let _ = write!(
            out,
            "<details><summary><b>{}</b> {} <span class=about>{}</span></summary><pre>{}</pre>",
            escape(&target.name),
            escape(&target.version),
            escape(&target.about),
            escape(&target.settings.join("\n"))
        );
        if !target.notes.is_empty() {
            let _ = write!(out, "<pre>{}</pre>", escape(&target.notes.join("\n")));
        }
        out.push_str("</details>");
    }
    out.push_str("</section>");
}

fn skipped(out: &mut String, report: &Report) {
    if report.skipped.is_empty() {
        return;
    }
    out.push_str("<section><h2>Not measured</h2><table>");
    for skipped in &report.skipped {
        let _ = write!(out, "<tr><th>{}<td>{}", escape(&skipped.what), escape(&skipped.why));
    }
    out.push_str("</table></section>");
}

/// Text that may stand between tags and in quoted attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8>\
<meta name=viewport content=\"width=device-width,initial-scale=1\"><title>WarpDrive bench</title><style>
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#dde3ea;--paper:#fff;--panel:#f6f8fa;--good:#137a43;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a3b3;--line:#2d3643;--paper:#12171e;--panel:#1a212b;--good:#4cc38a;--bad:#ff7b72}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header{padding:2rem 2rem 1rem;border-bottom:1px solid var(--line);background:var(--panel)}h1{margin:0;font-size:1.6rem}header p{margin:.3rem 0;color:var(--soft)}
.score{font-size:1.15rem}.score b{color:var(--good);font-size:1.4rem;margin-left:.4rem}.score b:first-child{margin-left:0}
main{max-width:1180px;margin:0 auto;padding:0 2rem 3rem}section{margin-top:2rem}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.about{color:var(--soft);margin:.2rem 0 .6rem}.good,.score b.good{color:var(--good)}.bad,.score b.bad{color:var(--bad)}td.good,td.bad{font-weight:600}.name,th{white-space:nowrap}
table{border-collapse:collapse;width:100%;font-size:.88rem}th{text-align:left;font-weight:600;color:var(--soft)}th,td{padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--line)}tr.first td{border-top:2px solid var(--line)}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:0 2rem}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.7rem;overflow-x:auto;font-size:.8rem;white-space:pre-wrap}
details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .one{stroke:var(--ink);stroke-dasharray:4 3}svg .goal{fill:#f2b100;stroke:var(--paper);stroke-width:.8}svg .whisker{stroke:var(--ink);stroke-width:1.2}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.88rem}.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
</style></head><body>";

#[cfg(test)]
mod tests {
    use super::super::compare::tests::report;
    use super::super::report::{Skipped, TargetFacts};
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_escaped() {
        let row = Row::paired("seq-warm", "mount", "MiB/s", &[1.0, 2.0], ("plain", &[2.0, 2.0]));
        let mut report = report(vec![row.unwrap().noted("<script>alert(1)</script>")]);
        report.skipped.push(Skipped { what: "x".into(), why: "a < b & \"c\"".into() });
        report.targets.push(TargetFacts {
            name: "mount".into(),
            about: String::new(),
            version: "</summary>".into(),
            settings: vec!["<b>".into()],
            notes: Vec::new(),
        });
        let page = page(&report);
        assert!(!page.contains("<script>") && !page.contains("</summary></summary>"));
        assert!(page.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(page.contains("<svg") && page.ends_with("</html>\n"));
        assert!(!page.contains("src=") && !page.contains("http://") && !page.contains("href="));
    }

    #[test]
    fn a_report_of_nothing_is_a_page_too() {
        let page = page(&report(Vec::new()));
        assert!(!page.contains("<svg") && page.contains("All figures"));
    }
}
