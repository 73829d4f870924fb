package syncer

import (
	"container/heap"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keelson-project/keelson/policy-sync/panics"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// CheckImage asks registries and verifiers about one image. It may take as long as a registry takes.
type CheckImage func(ctx context.Context, key snapshot.ImageKey) snapshot.Image

// Images keeps the verifiers' results for the images that are running. A registry may hang, and a verdict must not wait for
// it, so a sync takes what is known (Results never blocks) and the asking goes on beside; a new result triggers a sync. What
// is not known yet is absent, and absent is not verified.
//
// Each registry has places of its own among those who ask, so that one that hangs delays only images that lie there. What is
// known is asked about again before what is not, and of what is not, each namespace gets its turn: nobody who brings many
// images along keeps others' results from being renewed, or from being found out.
type Images struct {
	check   CheckImage
	trigger func()
	recheck time.Duration
	now     func() time.Time
	wake    chan struct{}
	// Panics notes what panicked; nil logs it. It is set before Start.
	Panics *panics.Recorder

	mu      sync.Mutex
	asked   map[snapshot.ImageKey]*asked
	lines   lines
	waiting timetable
}

const (
	// maxImages bounds what is kept. Images beyond it stay unverified until others go; what is known stays.
	maxImages = 65536
	// perRegistry is how many images of one registry are asked about at once, and inAll of all registries. So many of them as
	// spared are kept free for what is known and has to be renewed.
	perRegistry, inAll = 8, 128
	spared             = 2
	// lifetime is for how many rounds a result is good.
	lifetime = 3
)

// asked is an image that is asked about.
type asked struct {
	key       snapshot.ImageKey
	hosts     []string
	namespace string
	// answered is true once image holds an answer.
	answered bool
	image    snapshot.Image
	// silence is why the last round brought no answer, when there was one before.
	silence string
	due     time.Time
	// dropped is true when nobody wants to know any more.
	dropped bool
}

// known reports whether anything was found out that should be renewed in time.
func (a *asked) known() bool { return len(a.image.Manifests) > 0 }

// NewImages makes a store of results that are asked for again every recheck. Results are good for three rounds: when the
// asking itself stops, or a registry does not answer any more, an image counts as unknown then.
func NewImages(check CheckImage, trigger func(), recheck time.Duration, now func() time.Time) *Images {
	return &Images{check: check, trigger: trigger, recheck: recheck, now: now, wake: make(chan struct{}, 1),
		asked: map[snapshot.ImageKey]*asked{}, lines: newLines()}
}

// Results returns what is known of the images and has the rest found out. Images that are not asked for any more are
// forgotten; what is wanted stays, however many new ones come.
func (i *Images) Results(questions []snapshot.ImageQuestion) map[snapshot.ImageKey]snapshot.Image {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	wanted := make(map[snapshot.ImageKey]bool, len(questions))
	out := make(map[snapshot.ImageKey]snapshot.Image, len(questions))
	for _, q := range questions {
		if a := i.asked[q.ImageKey]; a != nil {
			wanted[q.ImageKey] = true
			a.namespace = q.Namespace
			if a.answered {
				out[q.ImageKey] = a.current(now)
			}
		}
	}
	for _, q := range questions {
		if len(wanted) >= maxImages {
			break
		}
		if !wanted[q.ImageKey] {
			wanted[q.ImageKey] = true
			a := &asked{key: q.ImageKey, hosts: hosts(q.ImageKey), namespace: q.Namespace}
			i.asked[q.ImageKey] = a
			i.lines.add(a)
		}
	}
	for key, a := range i.asked {
		if !wanted[key] {
			a.dropped = true
			delete(i.asked, key)
		}
	}
	i.nudge()
	return out
}

// current is the result as it is now: an acceptance that has ended without another answer is no refusal.
func (a *asked) current(now time.Time) snapshot.Image {
	out, cloned := a.image, false
	for name, v := range a.image.Verifiers {
		if !v.Accepted || now.Before(v.ValidUntil) {
			continue
		}
		if !cloned {
			out.Verifiers, cloned = maps.Clone(out.Verifiers), true
		}
		reason := fmt.Sprintf("its acceptance ended at %s and has not been renewed", v.ValidUntil.UTC().Format(time.RFC3339))
		if a.silence != "" {
			reason += ": " + a.silence
		}
		out.Verifiers[name] = snapshot.Verification{Unknown: true, Reason: reason}
	}
	return out
}

// Start asks until ctx ends.
func (i *Images) Start(ctx context.Context) error {
	return i.Panics.Loop(ctx, "asking about images", i.loop)
}

func (i *Images) loop(ctx context.Context) error {
	var askers sync.WaitGroup
	defer askers.Wait()
	for {
		ready, next := i.ready()
		for _, a := range ready {
			askers.Go(func() { i.ask(ctx, a) })
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-i.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// NeedLeaderElection is false: a replica that waits to lead knows its images when its turn comes.
func (i *Images) NeedLeaderElection() bool { return false }

// nudge has Start look again.
func (i *Images) nudge() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// ready takes the images whose turn it is, and says how long nothing else is due.
func (i *Images) ready() ([]*asked, time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	for len(i.waiting) > 0 && !i.waiting[0].due.After(now) {
		if a, ok := heap.Pop(&i.waiting).(*asked); ok && !a.dropped {
			i.lines.add(a)
		}
	}
	var out []*asked
	for {
		a := i.lines.take()
		if a == nil {
			break
		}
		out = append(out, a)
	}
	if len(i.waiting) == 0 {
		return out, time.Hour
	}
	return out, max(i.waiting[0].due.Sub(now), time.Millisecond)
}

func (i *Images) ask(ctx context.Context, a *asked) {
	defer i.nudge()
	defer i.Panics.Catch("asking about an image", nil)
	if i.take(ctx, a, i.examine(ctx, a.key)) {
		i.trigger()
	}
}

// examine checks an image. A panic is no answer about it.
func (i *Images) examine(ctx context.Context, key snapshot.ImageKey) (answer snapshot.Image) {
	defer i.Panics.Catch("examining an image", func(err error) { answer = snapshot.Image{Problem: err.Error()} })
	return i.check(ctx, key)
}

// take takes an answer over, gives the places of the one who asked back, and tells whether the answer says anything new.
func (i *Images) take(ctx context.Context, a *asked, answer snapshot.Image) (news bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lines.leave(a)
	if a.dropped || ctx.Err() != nil {
		return false
	}
	now := i.now()
	a.due = now.Add(i.recheck)
	heap.Push(&i.waiting, a)
	return a.learn(answer, now.Add(lifetime*i.recheck))
}

// learn takes over an answer and tells whether it says anything new. An answer that proves nothing replaces none that did: an
// acceptance stays until its own end, and a refusal until somebody accepts.
func (a *asked) learn(answer snapshot.Image, expires time.Time) bool {
	a.silence = ""
	verifiers := maps.Clone(answer.Verifiers)
	for name, v := range verifiers {
		v.ValidUntil = expires
		verifiers[name] = v
	}
	answer.Verifiers = verifiers
	before, answered := a.image, a.answered
	if a.known() && len(answer.Manifests) == 0 && !answer.Final {
		a.silence = answer.Problem
		return false
	}
	if slices.Equal(before.Manifests, answer.Manifests) {
		for name, v := range answer.Verifiers {
			if had, ok := before.Verifiers[name]; ok && v.Unknown && !had.Unknown {
				answer.Verifiers[name] = had
				a.silence = v.Reason
			}
		}
	}
	a.image, a.answered = answer, true
	return !answered || !sameImage(before, answer)
}

// sameImage compares all but the expiry, which moves with every round.
func sameImage(a, b snapshot.Image) bool {
	if !slices.Equal(a.Manifests, b.Manifests) || !slices.Equal(a.Indexes, b.Indexes) || a.Partial != b.Partial ||
		a.Problem != b.Problem || a.Final != b.Final || len(a.Verifiers) != len(b.Verifiers) {
		return false
	}
	for name, x := range a.Verifiers {
		y, ok := b.Verifiers[name]
		if !ok || x.Accepted != y.Accepted || x.Unknown != y.Unknown || x.Reason != y.Reason {
			return false
		}
	}
	return true
}
