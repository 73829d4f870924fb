package history_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/history"
)

var t0 = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

func at(minutes int) time.Time { return t0.Add(time.Duration(minutes) * time.Minute) }

func digest(of string) string { return "sha256:" + strings.Repeat(of, 64) }

func seen(of, platform string) history.Seen {
	return history.Seen{Reference: "r.example/app:v1", Platform: platform, Manifests: []string{digest(of)}, Config: digest(of), SignedBy: []string{"release-key " + of}}
}

// note notes a pod that was made a minute before it is seen.
func note(b *history.Book, node string, minute int, s ...history.Seen) []history.Moved {
	return b.Note("payments", "api", node, at(minute-1), at(minute), s)
}

func TestANameThatMovesIsFound(t *testing.T) {
	b := history.New(nil)
	if m := note(b, "fra-1", 0, seen("a", "linux/amd64")); len(m) > 0 {
		t.Errorf("the first image: %v", m)
	}
	if m := note(b, "par-1", 10, seen("a", "linux/amd64")); len(m) > 0 {
		t.Errorf("the same image on another node: %v", m)
	}
	if m := note(b, "arm-1", 11, seen("c", "linux/arm64")); len(m) > 0 {
		t.Errorf("another platform's image: %v", m)
	}
	m := note(b, "fra-1", 20, seen("b", "linux/amd64"))
	if len(m) != 1 || m[0].Before.Manifests[0] != digest("a") || m[0].Now.Manifests[0] != digest("b") {
		t.Fatalf("another image: %v", m)
	}
	if text, want := m[0].Text(), "image r.example/app:v1 meant "+digest("a")+" until 2026-10-01T12:10:00Z and means "+digest("b")+" since 2026-10-01T12:20:00Z"; text != want {
		t.Errorf("%s\nwant %s", text, want)
	}
	if m := note(b, "fra-1", 21, seen("b", "linux/amd64")); len(m) > 0 {
		t.Errorf("told again: %v", m)
	}
	if m := note(b, "fra-1", 30, seen("a", "linux/amd64")); len(m) != 1 || m[0].Before.Manifests[0] != digest("b") {
		t.Errorf("back again: %v", m)
	}
	if m := b.Moves("payments", "api", at(0)); len(m) != 1 || m[0].Now.Manifests[0] != digest("a") || m[0].Before.Manifests[0] != digest("b") {
		t.Errorf("moves: %v", m)
	}
	if m := b.Moves("payments", "api", at(31)); len(m) > 0 {
		t.Errorf("old moves: %v", m)
	}
	for _, s := range []history.Seen{{Reference: "r.example/app:v1", Platform: "linux/amd64"}, {Platform: "linux/amd64", Manifests: []string{digest("x")}},
		{Reference: strings.Repeat("x", 641), Manifests: []string{digest("x")}}} {
		if m := note(b, "fra-1", 40, s); len(m) > 0 {
			t.Errorf("of %+v is told %v", s, m)
		}
	}
}

// TestOneContentIsOneImage: another packing of one configuration is the same image, and of an unknown configuration the manifests count.
func TestOneContentIsOneImage(t *testing.T) {
	b := history.New(nil)
	note(b, "fra-1", 0, seen("a", ""))
	packed := seen("b", "")
	packed.Config = digest("a")
	if m := note(b, "fra-1", 1, packed); len(m) > 0 {
		t.Errorf("the same configuration: %v", m)
	}
	open := seen("a", "")
	open.Config = ""
	if m := note(b, "fra-1", 2, open); len(m) > 0 {
		t.Errorf("the same manifests: %v", m)
	}
	open.Manifests = []string{digest("b"), digest("a")}
	if m := note(b, "fra-1", 3, open); len(m) != 1 {
		t.Errorf("one of two manifests: %v", m)
	}
}

// TestANewLeaderTellsNothingTwice: it looks at every pod for the first time, also at those that started before the name moved.
func TestANewLeaderTellsNothingTwice(t *testing.T) {
	b := history.New(nil)
	note(b, "fra-1", 0, seen("a", ""))
	note(b, "par-1", 10, seen("b", ""))
	kept, changed := b.Images()
	if _, again := b.Images(); !changed || again {
		t.Errorf("changed %t, then %t", changed, again)
	}
	next := history.New(kept)
	for _, c := range []struct {
		node, of string
		made     int
	}{{"fra-1", "a", -1}, {"par-1", "b", 9}, {"fra-1", "a", -1}} {
		if m := next.Note("payments", "api", c.node, at(c.made), at(100), []history.Seen{seen(c.of, "")}); len(m) > 0 {
			t.Errorf("%s: %v", c.of, m)
		}
	}
	if got, changed := next.Images(); changed || fmt.Sprint(got) != fmt.Sprint(kept) {
		t.Errorf("it is written again:\n%v\n%v", got, kept)
	}
}

func TestWhatRanElsewhere(t *testing.T) {
	b := history.New(nil)
	note(b, "fra-1", 0, seen("a", "linux/amd64"))
	note(b, "arm-1", 1, seen("c", "linux/arm64"))
	list := b.Of("payments", "api")
	if same, other := history.Elsewhere(list, "par-1", seen("a", "linux/amd64")); !slices.Equal(same, []string{"fra-1"}) || other != nil {
		t.Errorf("the same: %v, %v", same, other)
	}
	if same, other := history.Elsewhere(list, "par-1", seen("b", "linux/amd64")); len(same) > 0 || other == nil || other.Manifests[0] != digest("a") {
		t.Errorf("another: %v, %v", same, other)
	}
	if same, other := history.Elsewhere(list, "fra-1", seen("a", "linux/amd64")); len(same) > 0 || other != nil {
		t.Errorf("nowhere else: %v, %v", same, other)
	}
}

// TestBounds: who makes many names forgets their own.
func TestBounds(t *testing.T) {
	b := history.New(nil)
	note(b, "fra-1", 0, seen("a", ""))
	for i := range 3000 {
		s := seen("b", "")
		s.Reference = fmt.Sprint("r.example/app:", i)
		b.Note("evil", fmt.Sprint("sa-", i%30), fmt.Sprint("node-", i), at(i), at(i+1), []history.Seen{s})
	}
	images, _ := b.Images()
	evil := slices.DeleteFunc(slices.Clone(images), func(i history.Image) bool { return i.Namespace != "evil" })
	if len(evil) != 1024 || len(images) != 1025 {
		t.Errorf("%d images, %d of them evil", len(images), len(evil))
	}
	if n := len(b.Of("evil", "sa-0")); n > 64 {
		t.Errorf("%d images of one workload", n)
	}
	for range 20 {
		note(b, fmt.Sprint("node-", len(images)), 1, seen("a", ""))
		images = append(images, history.Image{})
	}
	if n := len(b.Of("payments", "api")[0].Nodes); n != 4 {
		t.Errorf("%d nodes", n)
	}
	var many []history.Image
	for i := range 25_000 {
		many = append(many, history.Image{Namespace: fmt.Sprint("ns-", i%40), Account: "a", Reference: fmt.Sprint(i / 40), Manifests: []string{digest("a")}, Last: at(i)})
	}
	if got, _ := history.New(many).Images(); len(got) > 20_000 {
		t.Errorf("%d images of all", len(got))
	}
	bad := []history.Image{{}, {Namespace: "a", Account: "b", Reference: "c"}, {Namespace: "a", Account: "b", Reference: "c", Manifests: make([]string, 17)}}
	if got, _ := history.New(bad).Images(); len(got) > 0 {
		t.Errorf("taken: %v", got)
	}
}
