#!/bin/sh
# Run a command as the Ray job JOB, so that KubeRay repeats it only where that can help.
# Usage: no-retry JOB COMMAND...
#
# KubeRay knows no exit codes: it repeats a job that Ray calls FAILED, up to `backoffLimit` times. A job that Ray calls
# STOPPED it ends without another try and without calling it a success. Hence a search whose input is at fault (exit
# code 2), or that ended without a successful trial (3), has its own job stopped. All others are worth another try, but
# for a success (0), which the end of search.time_budget_s is, too.
job=$1
shift
"$@"
code=$?
case $code in
  2 | 3)
    echo "exit code $code: the same command would end the same way, so the Ray job $job is stopped, not repeated" >&2
    # Ray ends this script; whoever left before it did would have failed.
    ray job stop --address http://127.0.0.1:8265 --no-wait "$job" && sleep 60
    ;;
esac
exit "$code"
