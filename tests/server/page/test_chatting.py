"""The page in a browser: asking, answers, stopping, errors, and what is kept."""

from __future__ import annotations

import json
from typing import Any

from server.page.fake import CUT, Fake, chunk, event
from starlette.responses import JSONResponse

from .conftest import Watched

FAILED = "Failed to load resource"


def ask(page: Any, text: str) -> None:
    page.fill("#field", text)
    page.press("#field", "Enter")


def answered(page: Any, count: int = 1) -> Any:
    """The last answer, once `count` of them are complete."""
    done = page.locator('.assistant[aria-busy="false"]')
    done.nth(count - 1).wait_for()
    assert done.count() == count
    return done.last


def wait_for_answer(page: Any, text: str) -> None:
    page.locator(".assistant .markdown", has_text=text).wait_for()


def text_of(page: Any, number: int = -1) -> str:
    return page.locator(".assistant .markdown").nth(number).inner_text()


def test_a_text_is_sent_and_its_answer_shown(page: Any, fake: Fake) -> None:
    fake.answers.append(["It is ", "**red", "** indeed."])
    ask(page, "What colour?")
    answer = answered(page)
    assert text_of(page) == "It is red indeed."
    assert answer.locator("strong").inner_text() == "red"
    asked = fake.asked[0]
    assert asked == {
        "model": "tiny-vl",
        "messages": [{"role": "user", "content": "What colour?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert page.locator(".user .bubble").inner_text() == "What colour?"
    assert page.input_value("#field") == ""
    assert page.evaluate("() => document.activeElement.id") == "field"
    ask(page, "And now?")
    answered(page, 2)
    roles = [message["role"] for message in fake.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert fake.asked[1]["messages"][1]["content"] == "It is **red** indeed."


def test_the_figures_of_an_answer_are_the_servers(page: Any, fake: Fake) -> None:
    ask(page, "a")
    figures = answered(page).locator(".figures")
    expected = ["312 tokens in", "84 vision", "64 out", "first token 0.31 s", "41 tok/s"]
    assert figures.locator("summary span").all_inner_texts() == expected
    assert not figures.locator(".legend").is_visible()
    figures.locator("summary").click()
    shown = figures.locator(".legend").inner_text()
    for name in ("fetch media", "decode media", "encode pictures", "read prompt", "wait"):
        assert name in shown
    assert "12 ms" in shown
    assert "0.12 s" in shown


def test_without_the_servers_figures_the_browsers_are_shown(page: Any, fake: Fake) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    end = [chunk({}, "stop"), event({"choices": [], "usage": usage}), b"data: [DONE]\n\n", CUT]
    fake.answers.append([0.05, "a", 0.1, "b", *end])
    ask(page, "a")
    line = answered(page).locator(".figures summary").inner_text()
    assert "5 tokens in" in line
    assert "3 out" in line
    assert "first token" in line
    assert "tok/s" in line
    assert "vision" not in line


def test_text_streams_in_and_stop_ends_the_request(page: Any, fake: Fake) -> None:
    fake.answers.append(["First words. ", 60.0, "never"])
    ask(page, "Tell me")
    page.locator(".assistant.writing").wait_for()
    assert text_of(page) == "First words."
    assert page.locator("#send").is_hidden()
    page.click("#stop")
    assert "Stopped." in answered(page).inner_text()
    assert fake.left.wait(5)
    assert page.locator("#stop").is_hidden()
    # What was said until then is what the model said.
    ask(page, "Go on")
    answered(page, 2)
    assert fake.asked[1]["messages"][1] == {"role": "assistant", "content": "First words. "}


def test_escape_stops_too(page: Any, fake: Fake) -> None:
    fake.answers.append(["a", 60.0])
    ask(page, "Tell me")
    page.locator(".assistant.writing").wait_for()
    page.keyboard.press("Escape")
    answered(page)
    assert fake.left.wait(5)


def test_characters_that_the_network_cuts_arrive_whole(page: Any, fake: Fake) -> None:
    raw = chunk({"content": "红色的圆 🎈"})
    pieces = [piece for i in range(0, len(raw), 7) for piece in (raw[i : i + 7], 0.002)]
    fake.answers.append([b": a comment\r\n\r\n", *pieces])
    ask(page, "颜色？")
    answered(page)
    assert text_of(page) == "红色的圆 🎈"


def test_a_refusal_is_shown_and_can_be_tried_again(page: Any, fake: Fake, watched: Watched) -> None:
    watched.expected.append(FAILED)
    busy = JSONResponse(
        {"error": {"message": "64 requests wait"}}, status_code=503, headers={"retry-after": "2"}
    )
    wrong = JSONResponse({"error": {"message": "messages hold <b>too</b> much"}}, status_code=400)
    fake.answers += [busy, wrong, ["Better."]]
    ask(page, "a")
    problem = page.locator(".problem")
    assert "64 requests wait" in problem.inner_text()
    assert "in 2 s" in problem.inner_text()
    problem.get_by_role("button", name="Try again").click()
    page.get_by_text("messages hold <b>too</b> much").wait_for()
    problem.get_by_role("button", name="Try again").click()
    wait_for_answer(page, "Better.")
    assert problem.count() == 0
    assert [len(asked["messages"]) for asked in fake.asked] == [1, 1, 1]


def test_an_error_inside_a_stream_and_a_cut_one_are_shown(page: Any, fake: Fake, watched: Watched) -> None:
    watched.expected.append(FAILED)
    error = event({"error": {"message": "the server is stopping", "type": "server_error"}})
    fake.answers += [["Half ", error, b"data: [DONE]\n\n", CUT], ["Half again", CUT]]
    ask(page, "a")
    page.locator(".problem").wait_for()
    assert "the server is stopping" in page.locator(".problem").inner_text()
    assert text_of(page) == "Half"
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("connection broke").wait_for()
    assert text_of(page) == "Half again"


def test_a_server_that_is_gone_is_said(page: Any, fake: Fake, watched: Watched) -> None:
    watched.expected.append(FAILED)
    page.context.set_offline(True)
    ask(page, "a")
    page.get_by_text("The server does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    wait_for_answer(page, "Hello.")


def test_regenerating_asks_the_same_again(page: Any, fake: Fake) -> None:
    fake.answers += [["One."], ["Two."]]
    ask(page, "a")
    answered(page)
    page.get_by_role("button", name="Answer again").click()
    wait_for_answer(page, "Two.")
    assert page.locator(".markdown").all_inner_texts() == ["Two."]
    assert fake.asked[0] == fake.asked[1]


def test_editing_a_question_cuts_what_follows_and_asks_anew(page: Any, fake: Fake) -> None:
    fake.answers += [["One."], ["Two."], ["Three."]]
    ask(page, "first")
    answered(page)
    ask(page, "second")
    answered(page, 2)
    page.locator(".user").first.hover()
    page.get_by_role("button", name="Edit message").first.click()
    field = page.locator(".edit textarea")
    assert field.input_value() == "first"
    field.press("Escape")
    assert page.locator(".edit").count() == 0
    page.get_by_role("button", name="Edit message").first.click()
    field.fill("other")
    field.press("Enter")
    wait_for_answer(page, "Three.")
    assert fake.asked[2]["messages"] == [{"role": "user", "content": "other"}]
    assert page.locator(".message").count() == 2


def test_a_pair_is_deleted_and_comes_back(page: Any, fake: Fake) -> None:
    fake.answers += [["One."], ["Two."]]
    ask(page, "first")
    answered(page)
    ask(page, "second")
    answered(page, 2)
    page.locator(".user").first.hover()
    page.get_by_role("button", name="Delete message and answer").first.click()
    page.get_by_text("Message and answer deleted.").wait_for()
    assert page.locator(".message").count() == 2
    assert page.locator(".bubble").inner_text() == "second"
    page.get_by_role("button", name="Undo").click()
    wait_for_answer(page, "One.")
    assert page.locator(".bubble").all_inner_texts() == ["first", "second"]


def test_a_reload_shows_the_conversation_again(page: Any, fake: Fake) -> None:
    fake.answers.append(["Kept *answer*."])
    ask(page, "Kept question")
    answered(page)
    page.reload()
    wait_for_answer(page, "Kept answer.")
    assert page.locator(".bubble").inner_text() == "Kept question"
    assert "312 tokens in" in page.locator(".figures").inner_text()
    assert page.title() == "Kept question · Sightline"


def test_an_answer_that_a_reload_interrupts_is_kept_so_far(page: Any, fake: Fake) -> None:
    fake.answers.append(["So far. ", 1.6, "And on. ", 60.0])
    ask(page, "a")
    wait_for_answer(page, "And on.")
    page.wait_for_timeout(100)
    page.reload()
    assert "So far." in answered(page).inner_text()
    assert "Stopped." in answered(page).inner_text()
    assert fake.left.wait(5)


def test_conversations_are_listed_renamed_and_deleted(page: Any, fake: Fake) -> None:
    ask(page, "First one")
    answered(page)
    page.click("#new")
    assert page.locator("#welcome").is_visible()
    ask(page, "Second one")
    answered(page)
    rows = page.locator("#conversations .open")
    page.locator("#conversations li").nth(1).wait_for()
    assert rows.all_inner_texts() == ["Second one", "First one"]
    rows.nth(1).click()
    page.locator(".bubble", has_text="First one").wait_for()
    row = page.locator("#conversations li", has_text="First one")
    row.hover()
    row.get_by_role("button", name="Rename First one").click()
    page.keyboard.type("Renamed")
    page.keyboard.press("Enter")
    page.locator("#conversations .open", has_text="Renamed").wait_for()
    row = page.locator("#conversations li", has_text="Renamed")
    row.hover()
    row.get_by_role("button", name="Delete Renamed").click()
    page.get_by_role("button", name="Undo").wait_for()
    assert rows.all_inner_texts() == ["Second one"]
    assert page.locator("#welcome").is_visible()
    page.get_by_role("button", name="Undo").click()
    page.locator("#conversations .open", has_text="Renamed").wait_for()


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page: Any, fake: Fake) -> None:
    fake.answers.append(["a", 60.0])
    ask(page, "gone")
    page.locator(".assistant.writing").wait_for()
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete gone").click()
    assert fake.left.wait(5)
    page.wait_for_timeout(100)
    assert page.locator("#conversations .open").count() == 0
    page.reload()
    page.locator("#no-conversations").wait_for()


def test_an_answer_goes_on_while_another_conversation_is_open(page: Any, fake: Fake) -> None:
    fake.answers.append(["Slow ", 0.4, "answer."])
    ask(page, "slow one")
    page.locator(".assistant.writing").wait_for()
    page.click("#new")
    ask(page, "quick one")
    wait_for_answer(page, "Hello.")
    page.wait_for_timeout(500)
    page.locator("#conversations .open", has_text="slow one").click()
    wait_for_answer(page, "Slow answer.")
    answered(page)


def test_settings_and_the_system_prompt_are_sent_and_kept(page: Any, fake: Fake) -> None:
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#sampling-temperature", "0.5")
    page.fill("#sampling-top_k", "20")
    page.fill("#sampling-seed", "7")
    page.fill("#sampling-max_tokens", "0")
    assert page.get_attribute("#sampling-max_tokens", "aria-invalid") == "true"
    assert page.locator("#error-max_tokens").inner_text() == "A number from 1 to 1000000"
    page.keyboard.press("Escape")
    ask(page, "a")
    answered(page)
    asked = fake.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: asked[name] for name in ("temperature", "top_k", "seed")} == {
        "temperature": 0.5,
        "top_k": 20,
        "seed": 7,
    }
    assert not {"max_tokens", "top_p", "repetition_penalty"} & set(asked)
    page.reload()
    page.click("#open-settings")
    assert page.input_value("#sampling-temperature") == "0.5"
    assert page.input_value("#system") == "Be brief."
    page.click("#reset-sampling")
    assert page.input_value("#sampling-temperature") == ""


def test_an_adapter_can_be_chosen(page: Any, fake: Fake) -> None:
    assert page.locator("#model option").all_inner_texts() == ["tiny-vl", "shapes (adapter of tiny-vl)"]
    page.select_option("#model", "shapes")
    assert page.locator("#welcome-title").inner_text() == "Ask shapes about what you see"
    ask(page, "a")
    answered(page)
    assert fake.asked[0]["model"] == "shapes"
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.input_value("#model") == "shapes"


def test_an_adapter_that_was_unloaded_leaves_the_list(page: Any, fake: Fake, watched: Watched) -> None:
    watched.expected.append(FAILED)
    page.select_option("#model", "shapes")
    fake.models = fake.models[:1]
    fake.answers.append(JSONResponse({"error": {"message": "there is no shapes"}}, status_code=404))
    ask(page, "a")
    page.get_by_text("there is no shapes").wait_for()
    page.locator("#model option").nth(1).wait_for(state="detached")
    assert page.input_value("#model") == "tiny-vl"
    page.get_by_role("button", name="Try again").click()
    wait_for_answer(page, "Hello.")
    assert fake.asked[-1]["model"] == "tiny-vl"


def test_a_missing_api_key_is_asked_for(watched: Watched, fake: Fake) -> None:
    watched.expected.append(FAILED)
    fake.key = "secret"
    page = watched.open(fake.url)
    page.locator("#key-dialog[open] #key-field:focus").wait_for()
    page.keyboard.press("Escape")
    ask(page, "a")
    page.get_by_role("button", name="Enter API key").click()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    wait_for_answer(page, "Hello.")
    assert page.locator("#server-problem").is_hidden()
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("#key-dialog").is_hidden()


def test_a_conversation_is_saved_as_files_and_opened_again(
    page: Any, fake: Fake, picture: Any, tmp_path: Any
) -> None:
    page.set_input_files("#files", picture())
    page.locator("#attached .tile").wait_for()
    fake.answers.append(["A *red* one."])
    ask(page, "What is it?")
    answered(page)
    page.click("#open-export")
    with page.expect_download() as saved:
        page.click("#export-json")
    file = tmp_path / "saved.json"
    saved.value.save_as(file)
    assert saved.value.suggested_filename == "What-is-it.json"
    body = json.loads(file.read_text())
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    assert body["messages"][0] == fake.asked[0]["messages"][0]
    page.click("#open-export")
    with page.expect_download() as saved:
        page.click("#export-markdown")
    written = saved.value.path().read_text()
    assert written.startswith("# What is it?")
    assert "*[picture: red.png]*" in written
    assert written.endswith("A *red* one.\n")
    page.click("#new")
    page.set_input_files("#import-file", file)
    wait_for_answer(page, "A red one.")
    assert page.locator(".gallery img").count() == 1
    ask(page, "more")
    answered(page, 2)
    assert fake.asked[1]["messages"][0] == fake.asked[0]["messages"][0]


def test_a_file_that_is_no_conversation_is_refused(page: Any, tmp_path: Any) -> None:
    for content in ("{", "[]", '{"messages": [{"role": "user", "content": 3}]}', '{"messages": [null]}'):
        file = tmp_path / "wrong.json"
        file.write_text(content)
        page.set_input_files("#import-file", file)
        page.get_by_text("this is not a conversation").wait_for()
        page.evaluate("() => document.getElementById('toast').replaceChildren()")
    assert page.locator("#welcome").is_visible()
