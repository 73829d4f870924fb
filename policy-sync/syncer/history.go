package syncer

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/history"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// HistoryStore keeps which images workloads ran, beyond the life of a replica. *kube.History is one. One goroutine at a time uses it.
type HistoryStore interface {
	Load(ctx context.Context) ([]history.Image, error)
	Save(ctx context.Context, images []history.Image) error
}

const (
	// saveHistoryEvery is how often the history is written at most.
	saveHistoryEvery = 30 * time.Second
	// recentMoves is for how long a policy's status says that a name means another image.
	recentMoves = 7 * 24 * time.Hour
	// mostMoves bounds the findings about moved names that wait to be told.
	mostMoves = 256
)

// chronicle notes which images pods run. The loop waits for neither its reading nor its writing.
type chronicle struct {
	book *history.Book         // nil before what was kept has been read
	seen map[string]*sightings // by namespace
	// nodes and namespaces are those by which it was decided whose statuses are worth noting.
	nodes      []trustgraph.Node
	namespaces []trustgraph.Namespace
	// moved are findings that were not told yet.
	moved   []kube.Finding
	loading chan loadedHistory
	writing chan error
	saved   time.Time
	trouble string
}

type loadedHistory struct {
	images []history.Image
	err    error
}

// sightings are what was noted of one namespace's pods.
type sightings struct {
	pods []*corev1.Pod
	of   map[types.UID]sighting
	// open is true when not all could be noted.
	open bool
}

// sighting is what was noted of a pod: all of its images as the object had them, or those at places.
type sighting struct {
	pod   *corev1.Pod
	noted []string
}

// chronicle notes what runs now. Nothing that it does can fail a pass.
func (s *Syncer) chronicle(ctx context.Context, snap snapshot.Snapshot, g trustgraph.Graph) {
	defer s.o.Panics.Catch("noting images", nil)
	c := &s.history
	if s.o.History == nil || !s.loadHistory(ctx) {
		return
	}
	lists, err := snap.PodsByNamespace()
	if err != nil {
		return // no graph was made from such a reading
	}
	same := snapshot.Same(c.nodes, g.Nodes) && snapshot.Same(c.namespaces, g.Namespaces)
	c.nodes, c.namespaces = g.Nodes, g.Namespaces
	var platforms map[string]string
	if c.seen == nil {
		c.seen = map[string]*sightings{}
	}
	for namespace := range c.seen {
		if _, there := lists[namespace]; !there {
			delete(c.seen, namespace)
		}
	}
	for namespace, pods := range lists {
		had := c.seen[namespace]
		if had != nil && same && !had.open && snapshot.Same(had.pods, pods) {
			continue
		}
		if platforms == nil {
			platforms = snapshot.Platforms(snap.Nodes)
		}
		c.seen[namespace] = s.sight(snap, g, pods, platforms, had)
	}
	s.saveHistory(ctx)
}

// sight notes what the pods of one namespace run.
func (s *Syncer) sight(snap snapshot.Snapshot, g trustgraph.Graph, pods []*corev1.Pod, platforms map[string]string, before *sightings) *sightings {
	if before == nil {
		before = &sightings{}
	}
	out := &sightings{pods: pods, of: make(map[types.UID]sighting, len(pods))}
	for _, pod := range pods {
		had := before.of[pod.UID]
		if had.pod == pod {
			out.of[pod.UID] = had
			continue
		}
		if snapshot.Ended(pod) || snapshot.Mirror(pod) || !s.believed(g, pod) {
			if len(had.noted) > 0 {
				out.of[pod.UID] = had
			}
			continue
		}
		now := s.history.look(snap, pod, platforms[pod.Spec.NodeName], had)
		out.of[pod.UID], out.open = now, out.open || now.pod == nil
	}
	return out
}

// believed tells whether the status of a pod is worth noting: its namespace is enrolled, and its node trusted.
func (s *Syncer) believed(g trustgraph.Graph, pod *corev1.Pod) bool {
	if _, enrolled := g.Namespace(pod.Namespace); !enrolled {
		return false
	}
	node, ok := g.Node(pod.Spec.NodeName)
	return ok && node.Verdict == v1alpha1.VerdictTrusted
}

// look notes the images of a pod that are known now and were not noted.
func (c *chronicle) look(snap snapshot.Snapshot, pod *corev1.Pod, platform string, had sighting) sighting {
	out := sighting{pod: pod}
	for _, i := range snap.Config.ImagesOf(pod, platform) {
		if i.State != snapshot.ImageUsed || i.Reference == "" {
			continue
		}
		place := i.Subject() + "\n" + i.Reference + "\n" + i.Key.ImageID
		if slices.Contains(had.noted, place) {
			out.noted = append(out.noted, place)
			continue
		}
		seen, ok := seenOf(snap, i)
		if !ok {
			out.pod = nil // again in the next pass
			continue
		}
		out.noted = append(out.noted, place)
		for _, m := range c.book.Note(pod.Namespace, snapshot.ServiceAccount(pod), pod.Spec.NodeName, pod.CreationTimestamp.Time, snap.At, []history.Seen{seen}) {
			if len(c.moved) < mostMoves {
				c.moved = append(c.moved, kube.Finding{Reason: "ImageMoved", Note: i.Subject() + ": " + m.Text(),
					Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}})
			}
		}
	}
	return out
}

// seenOf is what is known of an image; false when it is not known, or not all of it.
func seenOf(snap snapshot.Snapshot, i snapshot.PodImage) (history.Seen, bool) {
	image, ok := snap.Images[i.Key]
	if !ok || len(image.Manifests) == 0 || image.Partial {
		return history.Seen{}, false
	}
	return history.Seen{Reference: i.Reference, Platform: i.Key.Platform, Manifests: image.Manifests, Config: image.Config, SignedBy: image.SignedBy}, true
}

// loadHistory tells whether what was kept has been read.
func (s *Syncer) loadHistory(ctx context.Context) bool {
	c := &s.history
	if c.book != nil {
		return true
	}
	if c.loading == nil {
		c.loading = make(chan loadedHistory, 1)
		go func(result chan<- loadedHistory) {
			ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
			defer cancel()
			defer s.Trigger()
			defer s.o.Panics.Catch("reading the history", func(err error) { result <- loadedHistory{err: err} })
			images, err := s.o.History.Load(ctx)
			result <- loadedHistory{images, err}
		}(c.loading)
		return false
	}
	select {
	case got := <-c.loading:
		c.loading = nil
		if s.historyTrouble(got.err); got.err != nil && !errors.Is(got.err, kube.ErrForgotten) {
			return false // the next pass tries again
		}
		c.book = history.New(got.images)
		return true
	default:
		return false
	}
}

func (s *Syncer) saveHistory(ctx context.Context) {
	c := &s.history
	if c.writing != nil {
		select {
		case err := <-c.writing:
			c.writing = nil
			if s.historyTrouble(err); err != nil {
				c.book.Dirty()
			}
		default:
			return
		}
	}
	now := s.o.Now()
	if !c.saved.IsZero() && now.Sub(c.saved) < saveHistoryEvery {
		return
	}
	images, changed := c.book.Images()
	if !changed {
		return
	}
	c.saved, c.writing = now, make(chan error, 1)
	go func(result chan<- error) {
		ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
		defer cancel()
		defer s.o.Panics.Catch("writing the history", func(err error) { result <- err })
		result <- s.o.History.Save(ctx, images)
	}(c.writing)
}

// flushHistory writes the history at the end.
func (s *Syncer) flushHistory(ctx context.Context) {
	defer s.o.Panics.Catch("writing the history at the end", nil)
	c := &s.history
	if s.o.History == nil || c.book == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if c.writing != nil {
		select {
		case err := <-c.writing:
			s.historyTrouble(err)
		case <-ctx.Done():
			return
		}
	}
	images, _ := c.book.Images()
	s.historyTrouble(s.o.History.Save(ctx, images))
}

func (s *Syncer) historyTrouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != s.history.trouble && err != nil {
		s.o.Log.Warn("cannot keep which images workloads ran", "err", err)
	}
	s.history.trouble = text
}

// tellMoves adds names that mean another image to what is reported: an event for each pod, and a note of each policy for whose
// accounts that is so.
func (s *Syncer) tellMoves(g trustgraph.Graph, r *kube.Report) {
	c := &s.history
	if c.book == nil {
		return
	}
	n := min(len(c.moved), mostAtOnce)
	r.Findings, c.moved = append(r.Findings, c.moved[:n]...), c.moved[n:]
	for i := range r.Policies {
		st := &r.Policies[i]
		p, ok := g.Policy(st.Namespace, st.Name)
		if !ok || p.UID != st.UID {
			continue
		}
		for _, account := range p.ServiceAccounts {
			for _, m := range c.book.Moves(p.Namespace, account, g.At.Add(-recentMoves)) {
				if len(st.Status.Notes) < maxStatusNotes {
					st.Status.Notes = append(slices.Clip(st.Status.Notes), "service account "+account+": "+m.Text())
				}
			}
		}
	}
}

// maxStatusNotes is the schema's bound on a status's notes.
const maxStatusNotes = 32
