"""All benchmarks, one after another."""

from tests.benchmarks import end_to_end, logprob_memory, scheduler, update, weight_sync

if __name__ == "__main__":
    scheduler.main()
    logprob_memory.main()
    update.main()
    weight_sync.main()
    end_to_end.main()
