"""All benchmarks, one after another."""

from tests.benchmarks import end_to_end

if __name__ == "__main__":
    end_to_end.main()
