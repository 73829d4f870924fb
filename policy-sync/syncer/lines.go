package syncer

import (
	"slices"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// lines are the images whose turn has come and that wait for a place. Those of one namespace that lie at the same registries
// stand in one line, and the lines take turns.
type lines struct {
	renewals, news queue
	// places counts who asks each registry now, and taken all of them.
	places map[string]int
	taken  int
}

// queue is lines that take turns.
type queue struct {
	order []*line
	byID  map[string]*line
}

// line is first come, first served.
type line struct {
	id     string
	images []*asked
}

func newLines() lines {
	return lines{renewals: queue{byID: map[string]*line{}}, news: queue{byID: map[string]*line{}}, places: map[string]int{}}
}

// add puts an image at the end of its line.
func (l *lines) add(a *asked) {
	q := &l.news
	if a.known() {
		q = &l.renewals
	}
	id := strings.Join(a.hosts, " ") + "\n" + a.namespace
	one := q.byID[id]
	if one == nil {
		one = &line{id: id}
		q.byID[id] = one
		q.order = append(q.order, one)
	}
	one.images = append(one.images, a)
}

// take gives a place to the next image that may have one, or returns nil.
func (l *lines) take() *asked {
	if a := l.next(&l.renewals, 0); a != nil {
		return a
	}
	return l.next(&l.news, spared)
}

// next takes the first image of the first line whose registries have more free places than are to be kept, and puts that line
// at the end.
func (l *lines) next(q *queue, keep int) *asked {
	for n := 0; n < len(q.order); n++ {
		one := q.order[n]
		one.images = skip(one.images)
		if len(one.images) > 0 && !l.free(one.images[0], keep) {
			continue
		}
		q.order = slices.Delete(q.order, n, n+1)
		n--
		if len(one.images) == 0 {
			delete(q.byID, one.id)
			continue
		}
		a := one.images[0]
		one.images = one.images[1:]
		q.order = append(q.order, one)
		l.taken++
		for _, host := range a.hosts {
			l.places[host]++
		}
		return a
	}
	return nil
}

// skip leaves out the images at the head of a line that nobody wants to know any more.
func skip(images []*asked) []*asked {
	for len(images) > 0 && images[0].dropped {
		images = images[1:]
	}
	return images
}

// free tells whether every registry at which the image may lie has a place for it.
func (l *lines) free(a *asked, keep int) bool {
	if l.taken >= inAll-keep {
		return false
	}
	return !slices.ContainsFunc(a.hosts, func(host string) bool { return l.places[host] >= perRegistry-keep })
}

// leave gives an image's places back.
func (l *lines) leave(a *asked) {
	l.taken--
	for _, host := range a.hosts {
		if l.places[host]--; l.places[host] == 0 {
			delete(l.places, host)
		}
	}
}

// hosts are the registries that may be asked about an image, sorted: those of each of its names. A name without one is of
// Docker Hub (distribution/reference, familiar names); a bare digest names none.
func hosts(key snapshot.ImageKey) []string {
	var out []string
	for _, name := range []string{key.ImageID, key.Image, key.Asked} {
		name = strings.TrimPrefix(strings.TrimPrefix(name, "docker-pullable://"), "docker://")
		if name == "" || strings.HasPrefix(name, "sha256:") {
			continue
		}
		host, _, path := strings.Cut(name, "/")
		if !path || !strings.ContainsAny(host, ".:") && host != "localhost" {
			host = "docker.io"
		}
		out = append(out, strings.ToLower(host))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// timetable is a heap of images by when they are due again.
type timetable []*asked

func (t timetable) Len() int           { return len(t) }
func (t timetable) Less(i, j int) bool { return t[i].due.Before(t[j].due) }
func (t timetable) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }

// Push adds one; for package heap.
func (t *timetable) Push(x any) {
	if a, ok := x.(*asked); ok {
		*t = append(*t, a)
	}
}

// Pop takes the last one; for package heap.
func (t *timetable) Pop() any {
	old := *t
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return a
}
