module keelson.test/eventlog

go 1.26

require github.com/google/go-eventlog v0.0.2
