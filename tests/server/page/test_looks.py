"""What the page shows and how it is used: Markdown, hostile answers, keyboard, screen readers, languages, themes."""

from __future__ import annotations

from typing import Any

import pytest
from server.page.fake import Fake

from .conftest import Watched
from .test_chatting import answered, ask

RENDER = """async (text) => {
    const { MarkdownView } = await import("/page/markdown.js");
    const view = new MarkdownView();
    view.update(text);
    return view.node.innerHTML;
}"""
LINK = 'target="_blank" rel="noopener noreferrer"'
MARKDOWN = [
    ("a *b* **c** ***d*** _e_ __f__ ~~g~~", "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> <strong>f</strong> <del>g</del></p>"),  # noqa: E501
    ("**a *b* c** *d **e** f*", "<p><strong>a <em>b</em> c</strong> <em>d <strong>e</strong> f</em></p>"),
    ("**a *b*** *c **d***", "<p><strong>a <em>b</em></strong> <em>c <strong>d</strong></em></p>"),
    ("snake_case_name 2 * 3 * 4 a * b", "<p>snake_case_name 2 * 3 * 4 a * b</p>"),
    ("*open **open `open", "<p>*open **open `open</p>"),
    ("`a*b*` ``c`d`` \\*e\\*", "<p><code>a*b*</code> <code>c`d</code> *e*</p>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("# A\n## *B*\n#no", '<h3 class="level-1">A</h3><h4 class="level-2"><em>B</em></h4><p>#no</p>'),
    ("a\n\n---\n\n***\nb", "<p>a</p><hr><hr><p>b</p>"),
    ("- a\n- b\n  - c\n    1. d\n- e", "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li></ul></li><li>e</li></ul>"),
    ("3. a\n4. b\n\ntext", '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>'),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    ("In\n1984. it was\n1. a", "<p>In<br>1984. it was</p><ol><li>a</li></ol>"),
    ("> a\n> > b\n> - c", "<blockquote><p>a</p><blockquote><p>b</p></blockquote><ul><li>c</li></ul></blockquote>"),
    ("[a](https://a.b/c_(d) \"t\") <https://e.f>", f'<p><a href="https://a.b/c_(d)" {LINK}>a</a> <a href="https://e.f/" {LINK}>https://e.f</a></p>'),
    ("see https://a.b/c?d=1&e=2. (https://f.g/h)", f'<p>see <a href="https://a.b/c?d=1&amp;e=2" {LINK}>https://a.b/c?d=1&amp;e=2</a>. (<a href="https://f.g/h" {LINK}>https://f.g/h</a>)</p>'),  # noqa: E501
    ("![cat](https://a.b/c.png)", f'<p><a href="https://a.b/c.png" {LINK}>cat</a></p>'),
    ("你好**世界**。", "<p>你好<strong>世界</strong>。</p>"),
]  # fmt: skip


def test_markdown_becomes_what_it_means(bare: Any) -> None:
    for text, expected in MARKDOWN:
        assert bare.evaluate(RENDER, text) == expected, text


def test_tables_and_code(bare: Any) -> None:
    table = bare.evaluate(RENDER, "| a | b |\n|:-:|--:|\n| `x|y` | 2 \\| 3 |\n| only |")
    assert '<th class="center">a</th><th class="right">b</th>' in table
    assert '<td class="center"><code>x|y</code></td><td class="right">2 | 3</td>' in table
    assert '<td class="center">only</td><td class="right"></td>' in table
    code = bare.evaluate(RENDER, "```python\nif a < b:\n\n    *c*\n```\nafter")
    assert "<code>if a &lt; b:\n\n    *c*</code>" in code
    assert "<span>python</span>" in code
    assert code.endswith("<p>after</p>")


HOSTILE = [
    "<img src=x onerror=\"window.bad=1\">",
    "<script>window.bad=1</script>",
    "<svg onload=window.bad=1><iframe srcdoc='<script>parent.bad=1</script>'>",
    "[a](javascript:window.bad=1) [b](JaVaScRiPt:window.bad=1) [c](data:text/html,<script>window.bad=1</script>)",
    "[d](\tjavascript:window.bad=1) <javascript:window.bad=1> [e](vbscript:x) [f](//evil.example) [g](blob:x)",
    "![x](x\" onerror=\"window.bad=1)",
    "```\"><img src=x onerror=window.bad=1>\n</code><img src=x onerror=window.bad=1>\n```",
    "| <img src=x onerror=window.bad=1> |\n|---|\n| [x](javascript:window.bad=1) |",
]  # fmt: skip


def test_hostile_answers_do_nothing(page: Any, fake: Fake) -> None:
    fake.answers.append(["\n\n".join(HOSTILE)])
    ask(page, HOSTILE[0])
    answer = answered(page)
    page.wait_for_timeout(100)
    assert page.evaluate("() => window.bad") is None
    assert page.locator("#messages :is(img, script, iframe, svg:not(.icon), a)").count() == 0
    assert "<script>window.bad=1</script>" in answer.inner_text()
    assert page.locator(".bubble").inner_text() == HOSTILE[0]
    attributes = "() => [...document.querySelectorAll('*')].flatMap((node) => node.getAttributeNames())"
    assert [name for name in page.evaluate(attributes) if name.startswith("on")] == []


def test_long_and_crooked_answers_take_no_time(bare: Any) -> None:
    cases = [
        "*a " * 20_000,
        "[" * 30_000,
        "`" * 20_001,
        "> " * 5_000,
        "- " * 3_000,
        "|a" * 9_000,
        "_*~~" * 9_000,
        "![](" * 9_000,
    ]
    took = bare.evaluate(
        """async (texts) => {
            const { MarkdownView } = await import("/page/markdown.js");
            return texts.map((text) => {
                const start = performance.now();
                new MarkdownView().update(text);
                return performance.now() - start;
            });
        }""",
        cases,
    )
    assert max(took) < 1500, took


def test_streaming_remakes_only_the_last_block(bare: Any) -> None:
    same = bare.evaluate(
        """async () => {
            const { MarkdownView } = await import("/page/markdown.js");
            const view = new MarkdownView();
            view.update("# A\\n\\ntext **b**\\n\\n```js\\nlet");
            const [head, text, code] = view.node.children;
            view.update("# A\\n\\ntext **b**\\n\\n```js\\nlet a = 1;\\n```\\n\\nend");
            const [head2, text2, code2, end] = view.node.children;
            const inner = code2.querySelector("code").textContent;
            return [head === head2, text === text2, code === code2, inner, end.textContent];
        }"""
    )
    assert same == [True, True, True, "let a = 1;", "end"]


def test_whatever_a_prefix_shows_the_end_is_the_same(bare: Any) -> None:
    """An answer that came in pieces looks like the same answer at once."""
    text = (
        "# T\n\n1. a\n   - b **c**\n\n|x|y|\n|-|-|\n|1|2|\n\n> q\n\n```py\nx = 1\n```\n*end* [l](https://a.b)"
    )
    equal = bare.evaluate(
        """async (text) => {
            const { MarkdownView } = await import("/page/markdown.js");
            const pieces = new MarkdownView();
            for (let end = 1; end <= text.length; end += 1) pieces.update(text.slice(0, end));
            const whole = new MarkdownView();
            whole.update(text);
            return pieces.node.innerHTML === whole.node.innerHTML;
        }""",
        text,
    )
    assert equal


def test_events_do_not_care_where_the_network_cuts(bare: Any) -> None:
    raw = 'data: {"a":1}\r\n\r\n: note\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\rdata: three\r\rdata: open'
    found = bare.evaluate(
        """async (raw) => {
            const { EventParser } = await import("/page/stream.js");
            const all = [];
            for (let size = 1; size <= raw.length; size += 1) {
                const parser = new EventParser();
                const found = [];
                for (let i = 0; i < raw.length; i += size) found.push(...parser.feed(raw.slice(i, i + size)));
                all.push(JSON.stringify(found));
            }
            return [...new Set(all)];
        }""",
        raw,
    )
    assert found == ['["{\\"a\\":1}","two\\nlines","three"]']


def test_the_language_is_the_browsers_and_can_be_changed(watched: Watched, fake: Fake) -> None:
    page = watched.open(fake.url, locale="zh-CN")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.get_by_role("button", name="新对话").is_visible()
    ask(page, "你好")
    answered(page)
    page.click("#open-settings")
    page.select_option("#language", "en")
    assert page.get_attribute("html", "lang") == "en"
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="New conversation").is_visible()
    assert "tokens in" in page.locator(".figures").inner_text()
    page.reload()
    assert page.get_by_role("button", name="New conversation").is_visible()


def test_the_theme_is_the_systems_and_can_be_changed(watched: Watched, fake: Fake) -> None:
    page = watched.open(fake.url, color_scheme="dark")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#open-settings")
    page.get_by_text("Light", exact=True).click()
    light = page.evaluate(colour)
    assert light != dark
    page.reload()
    assert page.evaluate(colour) == light
    assert page.get_attribute("html", "data-theme") == "light"


CONTRASTS = [
    *[("ink", ground) for ground in ("ground", "side", "surface", "raised", "tint", "danger-tint")],
    *[("soft", ground) for ground in ("ground", "side", "surface", "raised")],
    *[("accent", ground) for ground in ("ground", "surface")],
    *[("danger", ground) for ground in ("ground", "surface", "danger-tint")],
    ("on-accent", "accent"), ("on-accent", "accent-strong"), ("ground", "ink"),
]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(bare: Any, theme: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 between text and what it stands on."""
    found = bare.evaluate(
        """([theme, pairs]) => {
            document.documentElement.dataset.theme = theme;
            const probe = document.body.appendChild(document.createElement("i"));
            const light = (name) => {
                probe.style.color = `var(--${name})`;
                const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
                const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                const [r, g, b] = parts.map(linear);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ratios = pairs.map(([a, b]) => {
                const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
                return (high + 0.05) / (low + 0.05);
            });
            probe.remove();
            return ratios;
        }""",
        [theme, CONTRASTS],
    )
    assert [(pair, ratio) for pair, ratio in zip(CONTRASTS, found, strict=True) if ratio < 4.5] == []


# Each control needs a name that a screen reader can say; nothing may be tabbable while it is hidden from it.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, img, dialog[open]")]
    .filter((node) => node.type !== "file" || !node.hidden)
    .filter((node) => {
        const by = node.getAttribute("aria-labelledby");
        const label = node.getAttribute("aria-label") || (by && document.getElementById(by)?.textContent)
            || [...(node.labels ?? [])].map((one) => one.textContent).join("")
            || (node.matches("button, a") ? node.textContent : "");
        return !(node.tagName === "IMG" ? node.hasAttribute("alt") : label?.trim());
    })
    .map((node) => node.outerHTML.slice(0, 120))"""


def test_every_control_has_a_name(page: Any, fake: Fake, picture: Any) -> None:
    page.set_input_files("#files", picture())
    page.locator("#attached .tile").wait_for()
    assert page.evaluate(NAMELESS) == []
    fake.answers.append(["|a|\n|-|\n|b|\n\n```\ncode\n```"])
    ask(page, "a")
    answered(page)
    page.click("#open-settings")
    assert page.evaluate(NAMELESS) == []
    small = """() => [...document.querySelectorAll("button, select, textarea, summary")]
        .filter((n) => n.checkVisibility()).map((n) => [n.id || n.className, n.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)"""
    # WCAG 2.2, 2.5.8: targets of at least 24 by 24 pixels; a link inside of a line is exempt.
    assert set(page.evaluate(small)) <= {"link", "reset-sampling"}


def test_answers_are_said_in_whole_sentences_only(page: Any, fake: Fake) -> None:
    page.evaluate(
        """() => {
            window.said = [];
            const announcer = document.getElementById("announcer");
            new MutationObserver(() => announcer.textContent && window.said.push(announcer.textContent))
                .observe(announcer, { childList: true });
        }"""
    )
    fake.answers.append(
        [*[piece for word in ["One", "two.", "Three", "four.", "Five"] for piece in (word + " ", 0.01)]]
    )
    ask(page, "a")
    answered(page)
    assert page.evaluate("() => window.said") == ["One two. Three four. Five"]
    assert page.get_attribute("#messages", "aria-live") == "off"


def test_everything_can_be_done_with_the_keyboard(page: Any, fake: Fake) -> None:
    """Ask, reach the answer's buttons, ask again, open settings and leave them: no mouse."""
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    answered(page)
    assert fake.asked[0]["messages"][0]["content"] == "line one\nline two"

    def tab_to(name: str, key: str = "Shift+Tab") -> None:
        for _ in range(40):
            page.keyboard.press(key)
            label = page.evaluate(
                "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            )
            if name in label:
                shown = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert shown == "solid"
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("Answer again")
    page.keyboard.press("Enter")
    fake.wait_for(lambda: len(fake.asked) == 2)
    answered(page)
    tab_to("Edit message")
    page.keyboard.press("Enter")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    fake.wait_for(lambda: len(fake.asked) == 3)
    answered(page)
    assert fake.asked[2]["messages"][0]["content"] == "line one\nline two!"
    tab_to("Settings")
    page.keyboard.press("Enter")
    page.locator("#settings[open]").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "open-settings"


def test_choosing_a_word_of_an_input_method_does_not_send(page: Any, fake: Fake) -> None:
    page.fill("#field", "ni hao")
    for given in ("{ isComposing: true }", "{ keyCode: 229 }"):
        page.evaluate(
            f"""() => document.getElementById("field").dispatchEvent(new KeyboardEvent("keydown",
                {{ key: "Enter", bubbles: true, cancelable: true, ...{given} }}))"""
        )
    page.wait_for_timeout(50)
    assert fake.asked == []
    assert page.input_value("#field") == "ni hao"


def test_scrolling_up_stops_following_and_jump_returns(page: Any, fake: Fake) -> None:
    lines = [piece for i in range(40) for piece in (f"Line {i}\n\n", 0.02)]
    fake.answers.append([*lines, 0.5, "Last line"])
    ask(page, "a")
    page.locator(".markdown", has_text="Line 30").wait_for()
    rest = """() => {
        const { scrollHeight, scrollTop, clientHeight } = document.getElementById("scroller");
        return scrollHeight - scrollTop - clientHeight;
    }"""
    assert page.evaluate(rest) < 60
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -300)
    page.locator("#jump").wait_for()
    answered(page)
    assert page.evaluate(rest) > 200
    page.click("#jump")
    page.locator("#jump").wait_for(state="hidden")
    assert page.evaluate(rest) < 60


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_everything_without_scrolling_sideways(
    watched: Watched, fake: Fake, picture: Any, width: int
) -> None:
    page = watched.open(fake.url, viewport={"width": width, "height": 640}, has_touch=True)
    wide = "() => document.documentElement.scrollWidth > innerWidth || document.getElementById('scroller').scrollWidth > innerWidth"  # noqa: E501
    assert page.evaluate(wide) is False
    top = page.locator("#welcome img").bounding_box()["y"]
    assert top > page.locator("header").bounding_box()["height"] - 1
    page.set_input_files("#files", [picture("a.png"), picture("b.png"), picture("c.png")])
    page.locator("#attached .tile").nth(2).wait_for()
    fake.answers.append(
        ["x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + "a long cell|" * 9 + "\n|" + "-|" * 9]
    )
    ask(page, "z" * 200)
    answered(page)
    assert page.evaluate(wide) is False
    assert page.locator("#sidebar").is_hidden()
    page.click("#open-sidebar")
    page.locator("#conversations .open").wait_for()
    page.keyboard.press("Escape")
    page.locator("#sidebar").wait_for(state="hidden")
    assert page.evaluate("() => document.activeElement.id") == "open-sidebar"


def test_without_a_store_the_page_still_works(watched: Watched, fake: Fake) -> None:
    page = watched.open(fake.url)
    page.context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined });")
    page.goto(f"{fake.url}/?again")
    page.get_by_text("This browser keeps no data").wait_for()
    ask(page, "a")
    answered(page)
    assert page.locator("#conversations .open").count() == 1
