package panics_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keelson-project/keelson/policy-sync/panics"
)

func recorder(t *testing.T, log *bytes.Buffer, now func() time.Time) (*panics.Recorder, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	r, err := panics.New(slog.New(slog.NewTextHandler(log, nil)), now, registry)
	if err != nil {
		t.Fatal(err)
	}
	return r, registry
}

func TestAPanicIsAnErrorALogLineAMetricAndNotReady(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	var log bytes.Buffer
	r, registry := recorder(t, &log, func() time.Time { return now })
	if err := r.Ready(); err != nil {
		t.Errorf("before: %v", err)
	}
	result := make(chan error, 1)
	go func() {
		defer r.Catch("examining an image", func(err error) { result <- err })
		panic("index out of range")
	}()
	if err := <-result; !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("got %v", err)
	}
	if text := log.String(); !strings.Contains(text, "panics_test.go") || !strings.Contains(text, "index out of range") {
		t.Errorf("the log has no stack: %s", text)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "keelson_policy_sync_panics_total" || families[0].GetMetric()[0].GetCounter().GetValue() != 1 {
		t.Errorf("metrics: %v %v", families, err)
	}
	if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "examining an image panicked") {
		t.Errorf("readiness says %v", err)
	}
	if now = now.Add(panics.Recent); r.Ready() != nil {
		t.Error("readiness speaks of it for ever")
	}
}

func TestWithoutAPanicNothingIsCaught(t *testing.T) {
	var log bytes.Buffer
	r, _ := recorder(t, &log, time.Now)
	func() {
		defer r.Catch("a part", func(err error) { t.Error(err) })
	}()
	if log.Len() > 0 || r.Ready() != nil {
		t.Error(log.String())
	}
}

func TestANilRecorderRecovers(t *testing.T) {
	var r *panics.Recorder
	caught := false
	func() {
		defer r.Catch("a part", func(error) { caught = true })
		panic("x")
	}()
	if !caught || r.Ready() != nil {
		t.Error("not recovered")
	}
}

func TestALoopThatPanicsBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r, _ := recorder(t, &log, time.Now)
		want, begun := errors.New("a data plane was installed"), 0
		err := r.Loop(t.Context(), "a loop", func(context.Context) error {
			if begun++; begun < 3 {
				panic("x")
			}
			return want
		})
		if !errors.Is(err, want) || begun != 3 {
			t.Errorf("begun %d times: %v", begun, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if err := r.Loop(ctx, "a loop", func(context.Context) error { cancel(); panic("x") }); err != nil {
			t.Errorf("at the end: %v", err)
		}
	})
}
