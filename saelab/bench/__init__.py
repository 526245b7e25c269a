"""Speed, case by case: each module has a generator `cases(**settings)` of records that `saelab bench` prints."""
