// Package history keeps which images workloads ran: for each service account and each name of an image, the manifests and the
// configuration that the name meant, since when, on which nodes, and by whom they were signed.
//
// It decides nothing. It tells when a name has come to mean another image, and whether what starts on a node is what ran on others.
//
// Authors of pods control names, and their nodes what is reported under them, so everything is bounded: in a workload, in a
// namespace, and in all. Of more the ones that were seen longest ago are forgotten.
package history

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Image is one image that pods of one service account ran by one name.
type Image struct {
	Namespace string `json:"ns"`
	Account   string `json:"account"`
	// Reference is the image's name in pods' specs.
	Reference string `json:"ref"`
	// Platform is the nodes', "linux/arm64"; empty where they do not say.
	Platform string `json:"platform,omitempty"`
	// Manifests are "sha256:<hex>", sorted: those of the image, or all that may have run where the nodes report only an index.
	Manifests []string `json:"manifests"`
	// Config is "sha256:<hex>" of the image's configuration; empty where more than one image may have run.
	Config string `json:"config,omitempty"`
	// First is when it was first seen, Last when a pod that ran it was last seen for the first time.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// SignedBy names verifiers that accepted it, with their signers, when it was last seen.
	SignedBy []string `json:"signedBy,omitempty"`
	// Nodes are those that ran it, the newest last.
	Nodes []string `json:"nodes,omitempty"`
}

// Seen is one image of a pod, as it is known now.
type Seen struct {
	Reference, Platform string
	Manifests           []string
	Config              string
	SignedBy            []string
}

// Moved is a name that means another image than before.
type Moved struct{ Before, Now Image }

// Bounds.
const (
	maxWorkload  = 64 // images of one service account
	maxNamespace = 1024
	maxAll       = 20_000
	maxNodes     = 4
	maxManifests = 16
	maxSigners   = 8
	maxText      = 640
)

// Book is the history of a cluster's workloads. It is not safe for concurrent use.
type Book struct {
	// byName has the images of each workload's names.
	byName    map[workload]map[name][]*Image
	counts    map[string]int // by namespace
	workloads map[workload]int
	total     int
	// changed is true when something was noted that Images has not given out.
	changed bool
}

type name struct{ reference, platform string }

type workload struct{ namespace, account string }

// New makes a book of what is remembered. What is not usable is left out.
func New(images []Image) *Book {
	b := &Book{byName: map[workload]map[name][]*Image{}, counts: map[string]int{}, workloads: map[workload]int{}}
	for _, i := range images {
		if i.Namespace == "" || i.Account == "" || i.Reference == "" || len(i.Manifests) == 0 || len(i.Manifests) > maxManifests ||
			len(i.Nodes) > maxNodes || len(i.SignedBy) > maxSigners || len(i.Reference) > maxText {
			continue
		}
		b.add(i)
		b.trim(i.workload())
	}
	b.changed = false
	return b
}

func (i Image) name() name         { return name{i.Reference, i.Platform} }
func (i Image) workload() workload { return workload{i.Namespace, i.Account} }

func (b *Book) add(i Image) *Image {
	out := &i
	names := b.byName[i.workload()]
	if names == nil {
		names = map[name][]*Image{}
		b.byName[i.workload()] = names
	}
	names[i.name()] = append(names[i.name()], out)
	b.counts[i.Namespace]++
	b.workloads[i.workload()]++
	b.total++
	b.changed = true
	return out
}

// same tells whether an image is the one that was seen. One configuration is one content, however it is packed.
func (i *Image) same(s Seen) bool {
	if i.Config != "" && s.Config != "" {
		return i.Config == s.Config
	}
	return slices.Equal(i.Manifests, s.Manifests)
}

// latest is the image of the list that a pod started with last.
func latest(list []*Image) *Image {
	if len(list) == 0 {
		return nil
	}
	return slices.MaxFunc(list, func(a, b *Image) int { return cmp.Or(a.Last.Compare(b.Last), a.First.Compare(b.First)) })
}

// Note notes what a pod that is looked at for the first time runs, and tells what its names meant before. Created is when the pod
// was made: one that is older than the last start of another image has not moved the name back.
func (b *Book) Note(namespace, account, node string, created, now time.Time, seen []Seen) []Moved {
	var moved []Moved
	for _, s := range seen {
		s.Manifests = slices.Compact(slices.Sorted(slices.Values(s.Manifests)))
		if len(s.Manifests) == 0 || len(s.Manifests) > maxManifests || len(s.Reference) > maxText || s.Reference == "" {
			continue
		}
		list := b.byName[workload{namespace, account}][name{s.Reference, s.Platform}]
		before := latest(list)
		at := slices.IndexFunc(list, func(i *Image) bool { return i.same(s) })
		var ran *Image
		if at >= 0 {
			ran = list[at]
		} else {
			ran = b.add(Image{Namespace: namespace, Account: account, Reference: s.Reference, Platform: s.Platform, Manifests: s.Manifests, Config: s.Config, First: now})
		}
		if before != nil && before != ran && (at < 0 || created.After(before.Last)) {
			moved = append(moved, Moved{Before: *before, Now: *ran})
		}
		b.update(ran, s, node, created, now)
	}
	b.trim(workload{namespace, account})
	return moved
}

// update notes one more start of an image. A pod that was made before the last start was may have been noted already, by a replica
// that led before: of such a one only a node that was not known counts.
func (b *Book) update(i *Image, s Seen, node string, created, now time.Time) {
	known := slices.Contains(i.Nodes, node)
	if !i.Last.IsZero() && !created.After(i.Last) && (known || len(i.Nodes) == maxNodes) {
		return
	}
	if i.Last.IsZero() || created.After(i.Last) {
		i.Last = now
	}
	if len(s.SignedBy) > 0 {
		i.SignedBy = slices.Clone(s.SignedBy[:min(len(s.SignedBy), maxSigners)])
	}
	if i.Config == "" {
		i.Config = s.Config
	}
	i.Nodes = append(slices.DeleteFunc(slices.Clone(i.Nodes), func(n string) bool { return n == node }), node)
	if over := len(i.Nodes) - maxNodes; over > 0 {
		i.Nodes = i.Nodes[over:]
	}
	b.changed = true
}

// Images are all that is known, sorted, and whether that has changed since the last call.
func (b *Book) Images() ([]Image, bool) {
	changed := b.changed
	b.changed = false
	return b.all(), changed
}

// Dirty has Images say that something has changed: what it gave out was not kept.
func (b *Book) Dirty() { b.changed = true }

func (b *Book) all() []Image {
	out := make([]Image, 0, b.total)
	for _, names := range b.byName {
		out = append(out, flat(names)...)
	}
	slices.SortFunc(out, Compare)
	return out
}

func flat(names map[name][]*Image) []Image {
	var out []Image
	for _, list := range names {
		for _, i := range list {
			out = append(out, *i)
		}
	}
	return out
}

// Of lists the images of a workload, the latest of each name first.
func (b *Book) Of(namespace, account string) []Image {
	out := flat(b.byName[workload{namespace, account}])
	slices.SortFunc(out, Compare)
	return out
}

// Compare sorts images by workload and name, the latest first.
func Compare(a, b Image) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Account, b.Account), cmp.Compare(a.Reference, b.Reference),
		cmp.Compare(a.Platform, b.Platform), b.Last.Compare(a.Last), b.First.Compare(a.First), slices.Compare(a.Manifests, b.Manifests))
}

// Moves are the names of a workload that mean another image than before, each with the one before, if the last start of it was
// after since.
func (b *Book) Moves(namespace, account string, since time.Time) []Moved {
	var out []Moved
	list := b.Of(namespace, account)
	for n := 0; n+1 < len(list); n++ {
		now, before := list[n], list[n+1]
		if now.name() == before.name() && (n == 0 || list[n-1].name() != now.name()) && now.Last.After(since) {
			out = append(out, Moved{Before: before, Now: now})
		}
	}
	return out
}

// trim forgets what was seen longest ago where a bound is exceeded: of the workload, of its namespace, and of the namespace that
// has most.
func (b *Book) trim(w workload) {
	if over := b.workloads[w] - maxWorkload; over > 0 {
		b.forget(over, func(other workload) bool { return other == w })
	}
	if over := b.counts[w.namespace] - maxNamespace; over > 0 {
		b.forget(over, func(other workload) bool { return other.namespace == w.namespace })
	}
	for b.total > maxAll {
		most := ""
		for namespace, count := range b.counts {
			if most == "" || count > b.counts[most] || count == b.counts[most] && namespace < most {
				most = namespace
			}
		}
		b.forget(max(1, b.counts[most]/10), func(other workload) bool { return other.namespace == most })
	}
}

// forget takes out n images, those that were seen longest ago.
func (b *Book) forget(n int, of func(workload) bool) {
	var list []*Image
	for w, names := range b.byName {
		if of(w) {
			for _, images := range names {
				list = append(list, images...)
			}
		}
	}
	slices.SortFunc(list, func(x, y *Image) int { return cmp.Or(x.Last.Compare(y.Last), Compare(*x, *y)) })
	for _, old := range list[:min(n, len(list))] {
		b.remove(old)
	}
}

func (b *Book) remove(old *Image) {
	w, key := old.workload(), old.name()
	names := b.byName[w]
	names[key] = slices.DeleteFunc(names[key], func(i *Image) bool { return i == old })
	if len(names[key]) == 0 {
		delete(names, key)
	}
	if b.counts[old.Namespace]--; b.counts[old.Namespace] == 0 {
		delete(b.counts, old.Namespace)
	}
	if b.workloads[w]--; b.workloads[w] == 0 {
		delete(b.workloads, w)
		delete(b.byName, w)
	}
	b.total--
}

// Text says what moved, for a person.
func (m Moved) Text() string {
	return "image " + m.Now.Reference + " meant " + digests(m.Before) + " until " + stamp(m.Before.Last) + " and means " + digests(m.Now) + " since " + stamp(m.Now.First)
}

func digests(i Image) string { return strings.Join(i.Manifests, " or ") }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Elsewhere compares what a pod runs on a node with what ran by the same name on others: the nodes that ran the same image, and the
// newest other image that other nodes ran, if no other node ran the same.
func Elsewhere(images []Image, node string, s Seen) (same []string, other *Image) {
	s.Manifests = slices.Compact(slices.Sorted(slices.Values(s.Manifests)))
	for _, i := range images {
		if i.Reference != s.Reference || i.Platform != s.Platform {
			continue
		}
		nodes := slices.DeleteFunc(slices.Clone(i.Nodes), func(n string) bool { return n == node })
		switch {
		case len(nodes) == 0:
		case i.same(s):
			same = append(same, nodes...)
		case other == nil || i.Last.After(other.Last):
			i.Nodes = nodes
			other = &i
		}
	}
	if len(same) > 0 {
		other = nil
	}
	return same, other
}
