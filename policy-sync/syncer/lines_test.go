package syncer

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func ask(namespace, id string) snapshot.ImageQuestion {
	return snapshot.ImageQuestion{ImageKey: snapshot.ImageKey{ImageID: id}, Namespace: namespace}
}

// TestARegistryThatHangsDelaysOnlyItsOwnImages, neither their first answers nor their renewal.
func TestARegistryThatHangsDelaysOnlyItsOwnImages(t *testing.T) {
	var renewed atomic.Int64
	i, _ := startImages(t, func(ctx context.Context, key snapshot.ImageKey) snapshot.Image {
		if strings.HasPrefix(key.ImageID, "hangs.example/") {
			<-ctx.Done()
			return snapshot.Image{Problem: ctx.Err().Error()}
		}
		renewed.Add(1)
		return accepted()
	})
	var q []snapshot.ImageQuestion
	for n := range 200 {
		q = append(q, ask("a", fmt.Sprintf("hangs.example/x@sha256:%064x", n)))
	}
	q = append(q, ask("a", "good.example/x@sha256:"+strings.Repeat("1", 64)))
	i.Results(q)
	within(t, "the other registry's image is answered", func() bool { return len(i.Results(q)) == 1 })
	within(t, "and asked about again and again", func() bool { return renewed.Load() > 5 })
}

// TestEachNamespaceGetsItsTurn: who brings a thousand images along does not keep another one's first from being found out.
func TestEachNamespaceGetsItsTurn(t *testing.T) {
	l := newLines()
	add := func(namespace, id string) {
		key := snapshot.ImageKey{ImageID: id}
		l.add(&asked{key: key, hosts: hosts(key), namespace: namespace})
	}
	for n := range 1000 {
		add("greedy", fmt.Sprintf("registry.example/a%d", n))
	}
	add("modest", "registry.example/b")
	for turn := range 1001 {
		a := l.take()
		if a == nil {
			t.Fatalf("nobody has turn %d", turn)
		}
		if a.namespace == "modest" && turn > 1 {
			t.Errorf("its image was the %d-th to be asked about", turn+1)
		}
		l.leave(a)
	}
	if a := l.take(); a != nil || len(l.places) > 0 || l.taken != 0 || len(l.news.byID) > 0 {
		t.Errorf("left over: %+v", l)
	}
}

// TestARegistryIsNotOverrun: the places of a registry are bounded, and some are kept for what has to be renewed.
func TestARegistryIsNotOverrun(t *testing.T) {
	var now, most atomic.Int64
	i, _ := startImages(t, func(ctx context.Context, _ snapshot.ImageKey) snapshot.Image {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
		return snapshot.Image{Problem: "404", Final: true}
	})
	var q []snapshot.ImageQuestion
	for n := range 100 {
		q = append(q, ask(fmt.Sprint("ns", n%7), fmt.Sprintf("registry.example/a%d", n)))
	}
	i.Results(q)
	within(t, "all are answered", func() bool { return len(i.Results(q)) == len(q) })
	if got := most.Load(); got > perRegistry-spared {
		t.Errorf("%d at once, want at most %d", got, perRegistry-spared)
	}
}

// TestWhatIsKnownAndWantedStays, however many new images come along.
func TestWhatIsKnownAndWantedStays(t *testing.T) {
	i, _ := startImages(t, func(context.Context, snapshot.ImageKey) snapshot.Image { return accepted() })
	known := ask("a", "zzz.example/known")
	i.Results([]snapshot.ImageQuestion{known})
	within(t, "it is known", func() bool { return len(i.Results([]snapshot.ImageQuestion{known})) == 1 })
	var q []snapshot.ImageQuestion
	for n := range maxImages + 10 {
		q = append(q, ask("b", fmt.Sprintf("a.example/%d", n)))
	}
	if got := i.Results(append(q, known)); !got[known.ImageKey].Verifiers["release"].Accepted {
		t.Error("it is forgotten")
	}
}

// TestAnAcceptanceOutlivesSilence: until its own end, and then it is unknown, which is no refusal.
func TestAnAcceptanceOutlivesSilence(t *testing.T) {
	silences := map[string]snapshot.Image{
		"the image cannot be read": {Problem: "registry is away"},
		"the verifier cannot tell": {Manifests: []string{"sha256:m"}, Verifiers: map[string]snapshot.Verification{"release": {Unknown: true, Reason: "429"}}},
	}
	for name, silence := range silences {
		t.Run(name, func(t *testing.T) {
			a := &asked{}
			at := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
			if !a.learn(accepted(), at.Add(time.Minute)) {
				t.Error("an answer is no news")
			}
			a.learn(silence, at.Add(time.Hour))
			if v := a.current(at.Add(time.Minute - 1)).Verifiers["release"]; !v.Accepted || !v.ValidUntil.Equal(at.Add(time.Minute)) {
				t.Errorf("before its end: %+v", v)
			}
			if v := a.current(at.Add(time.Minute)).Verifiers["release"]; v.Accepted || !v.Unknown || !strings.Contains(v.Reason, silence.Problem) {
				t.Errorf("after its end: %+v", v)
			}
			refusal := accepted()
			refusal.Verifiers["release"] = snapshot.Verification{Reason: "no signature"}
			if !a.learn(refusal, at.Add(2*time.Hour)) {
				t.Error("a refusal is no news")
			}
			a.learn(silence, at.Add(3*time.Hour))
			if v := a.current(at).Verifiers["release"]; v.Accepted || v.Unknown {
				t.Errorf("after a refusal: %+v", v)
			}
			a.learn(snapshot.Image{Problem: "gone", Final: true}, at)
			if got := a.current(at); len(got.Manifests) > 0 || !got.Final {
				t.Errorf("after a final answer: %+v", got)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	for want, key := range map[string]snapshot.ImageKey{
		"":                         {ImageID: "sha256:aa", Image: "sha256:aa"},
		"docker.io":                {ImageID: "nginx@sha256:aa", Image: "library/nginx:1"},
		"a.example b.example:5000": {ImageID: "docker-pullable://B.example:5000/x@sha256:aa", Image: "a.example/x:1", Asked: "a.example/y"},
		"localhost":                {Image: "localhost/x"},
	} {
		if got := strings.Join(hosts(key), " "); got != want {
			t.Errorf("%+v: %q, want %q", key, got, want)
		}
	}
}
