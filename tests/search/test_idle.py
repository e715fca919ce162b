from tune_dlrml.search.idle import IdleTime


def test_idle_seconds_are_those_of_the_groups_without_a_trial():
    now = [100.0]
    idle = IdleTime(3, lambda: now[0])
    now[0] = 110  # all three have trials
    idle.start(running=1)
    now[0] = 114  # two are idle for 4 s
    assert idle.since_last() == 8
    idle.start(running=0)
    now[0] = 115  # three for 1 s
    idle.stop()
    now[0] = 200
    assert idle.since_last() == 3
    assert idle.since_last() == 0


def test_what_is_taken_was_seen_and_what_is_not_is_left_for_later():
    now = [0.0]
    idle = IdleTime(2, lambda: now[0])
    assert idle.start(running=0) == 0
    now[0] = 3.0
    assert idle.start(running=0) == 3
    now[0] = 4.0
    assert (idle.take(), idle.take(), idle.since_last()) == (6, 0, 2)
