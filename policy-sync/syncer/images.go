package syncer

import (
	"context"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// CheckImage asks registries and verifiers about one image. It may take as long as a registry takes.
type CheckImage func(ctx context.Context, key snapshot.ImageKey) snapshot.Image

// Images keeps the verifiers' results for the images that are running. A registry may hang, and a verdict must not wait for
// it, so a sync takes what is known (Results never blocks) and the asking goes on beside; a new result triggers a sync. What
// is not known yet is absent, and absent is not verified.
type Images struct {
	check   CheckImage
	trigger func()
	recheck time.Duration
	now     func() time.Time
	queue   workqueue.TypedDelayingInterface[snapshot.ImageKey]

	mu     sync.Mutex
	wanted map[snapshot.ImageKey]bool
	known  map[snapshot.ImageKey]snapshot.Image
}

// imageWorkers is how many images are asked about at once; one dead registry holds up its own images only while others wait
// in the remaining workers.
const imageWorkers = 8

// maxImages bounds what is kept. Images beyond it stay unverified until others go.
const maxImages = 16384

// NewImages makes a store of results that are asked for again every recheck. Results are good for three rounds: when the
// asking itself stops, what it had opened closes.
func NewImages(check CheckImage, trigger func(), recheck time.Duration, now func() time.Time) *Images {
	return &Images{check: check, trigger: trigger, recheck: recheck, now: now,
		queue:  workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[snapshot.ImageKey]{Name: "images"}),
		wanted: map[snapshot.ImageKey]bool{}, known: map[snapshot.ImageKey]snapshot.Image{}}
}

// Results returns what is known of the images and has the rest found out. Images that are not asked for any more are
// forgotten.
func (i *Images) Results(questions []snapshot.ImageQuestion) map[snapshot.ImageKey]snapshot.Image {
	i.mu.Lock()
	defer i.mu.Unlock()
	wanted := make(map[snapshot.ImageKey]bool, len(questions))
	out := make(map[snapshot.ImageKey]snapshot.Image, len(questions))
	for _, q := range questions {
		key := q.ImageKey
		if len(wanted) == maxImages {
			break
		}
		wanted[key] = true
		if !i.wanted[key] {
			i.queue.Add(key)
		}
		if image, ok := i.known[key]; ok {
			out[key] = image
		}
	}
	for key := range i.known {
		if !wanted[key] {
			delete(i.known, key)
		}
	}
	i.wanted = wanted
	return out
}

// Start asks until ctx ends.
func (i *Images) Start(ctx context.Context) error {
	var workers sync.WaitGroup
	for range imageWorkers {
		workers.Go(func() {
			for i.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	i.queue.ShutDown()
	workers.Wait()
	return nil
}

// NeedLeaderElection is false: a replica that waits to lead knows its images when its turn comes.
func (i *Images) NeedLeaderElection() bool { return false }

func (i *Images) next(ctx context.Context) bool {
	key, shutdown := i.queue.Get()
	if shutdown {
		return false
	}
	defer i.queue.Done(key)
	if !i.wants(key) {
		return true
	}
	image := i.check(ctx, key)
	expires := i.now().Add(3 * i.recheck)
	for name, v := range image.Verifiers {
		v.ValidUntil = expires
		image.Verifiers[name] = v
	}
	if i.keep(key, image) {
		i.trigger()
	}
	i.queue.AddAfter(key, i.recheck)
	return true
}

func (i *Images) wants(key snapshot.ImageKey) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.wanted[key]
}

// keep stores a result and tells whether it says anything new.
func (i *Images) keep(key snapshot.ImageKey, image snapshot.Image) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.wanted[key] {
		return false
	}
	before, known := i.known[key]
	i.known[key] = image
	return !known || !sameImage(before, image)
}

// sameImage compares all but the expiry, which moves with every round.
func sameImage(a, b snapshot.Image) bool {
	if !slices.Equal(a.Manifests, b.Manifests) || !slices.Equal(a.Indexes, b.Indexes) || a.Problem != b.Problem || len(a.Verifiers) != len(b.Verifiers) {
		return false
	}
	for name, x := range a.Verifiers {
		y, ok := b.Verifiers[name]
		if !ok || x.Accepted != y.Accepted || x.Reason != y.Reason {
			return false
		}
	}
	return true
}
