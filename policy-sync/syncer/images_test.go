package syncer

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func question(id string) snapshot.ImageQuestion {
	return snapshot.ImageQuestion{ImageKey: snapshot.ImageKey{Image: "a", ImageID: id}}
}

func accepted() snapshot.Image {
	return snapshot.Image{Manifests: []string{"sha256:m"}, Verifiers: map[string]snapshot.Verification{"release": {Accepted: true}}}
}

func startImages(t *testing.T, check CheckImage) (*Images, *atomic.Int64) {
	t.Helper()
	triggers := &atomic.Int64{}
	i := NewImages(check, func() { triggers.Add(1) }, 20*time.Millisecond, time.Now)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- i.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return i, triggers
}

func TestImagesAreFoundOutBeside(t *testing.T) {
	var calls atomic.Int64
	i, triggers := startImages(t, func(context.Context, snapshot.ImageKey) snapshot.Image {
		calls.Add(1)
		return accepted()
	})
	q := []snapshot.ImageQuestion{question("x")}
	if got := i.Results(q); len(got) != 0 {
		t.Errorf("known before it was asked: %v", got)
	}
	within(t, "the answer triggers a pass", func() bool { return triggers.Load() == 1 })
	first := i.Results(q)[q[0].ImageKey]
	if !first.Verifiers["release"].Accepted || first.Verifiers["release"].ValidUntil.IsZero() {
		t.Errorf("got %+v, want an answer with an end", first)
	}
	within(t, "it is asked again", func() bool { return calls.Load() > 3 })
	if got := triggers.Load(); got != 1 {
		t.Errorf("%d triggers, though nothing changed", got)
	}
	if renewed := i.Results(q)[q[0].ImageKey]; !renewed.Verifiers["release"].ValidUntil.After(first.Verifiers["release"].ValidUntil) {
		t.Error("the answer is not renewed")
	}
	i.Results(nil)
	if got := i.Results(q); len(got) != 0 {
		t.Errorf("what nobody asked for was kept: %v", got)
	}
}

func TestADeadRegistryBlocksNobody(t *testing.T) {
	i, triggers := startImages(t, func(ctx context.Context, key snapshot.ImageKey) snapshot.Image {
		if key.ImageID == "dead" {
			<-ctx.Done()
		}
		return accepted()
	})
	q := []snapshot.ImageQuestion{question("dead"), question("alive")}
	begun := time.Now()
	i.Results(q)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("asking took %s", took)
	}
	within(t, "the other image is answered", func() bool { return triggers.Load() == 1 })
	if _, known := i.Results(q)[question("dead").ImageKey]; known {
		t.Error("an image is known that nobody could verify")
	}
}

func TestAChangedAnswerTriggersAPass(t *testing.T) {
	var revoked atomic.Bool
	i, triggers := startImages(t, func(context.Context, snapshot.ImageKey) snapshot.Image {
		if revoked.Load() {
			return snapshot.Image{Manifests: []string{"sha256:m"}, Verifiers: map[string]snapshot.Verification{"release": {Reason: "no signature"}}}
		}
		return accepted()
	})
	q := []snapshot.ImageQuestion{question("x")}
	i.Results(q)
	within(t, "answered", func() bool { return triggers.Load() == 1 })
	revoked.Store(true)
	within(t, "the loss is told", func() bool { return triggers.Load() == 2 })
	if i.Results(q)[q[0].ImageKey].Verifiers["release"].Accepted {
		t.Error("the image is still accepted")
	}
}
