package syncer

import (
	"context"
	"errors"
	"time"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Memory outlives a replica: who takes over knows which addresses attested pods had, and says when passes last succeeded.
// *kube.Memory is one. One goroutine at a time uses it.
type Memory interface {
	Load(ctx context.Context) ([]snapshot.Attested, error)
	Save(ctx context.Context, pods []snapshot.Attested) error
	Beat(ctx context.Context, at time.Time) error
}

const (
	// saveEvery is how often the memory is written at most, beatEvery the heartbeat.
	saveEvery = 3 * time.Second
	beatEvery = time.Minute
	// lastWords bounds what is written at the end.
	lastWords = 2 * time.Second
)

// keeper reads and writes the memory beside the loop, which waits for neither.
type keeper struct {
	loading chan loaded // a reading that is under way
	loaded  bool        // read once; nothing is written before, since it might say less
	writing chan error  // a writing that is under way
	saved   time.Time   // when the last writing began
	beaten  time.Time
	trouble string // what was logged last
	// kept is what was written last, with success once the writing is done.
	kept snapshot.Memory
}

type loaded struct {
	pods []snapshot.Attested
	err  error
}

// recall takes up what an earlier leader remembered. The first pass waits a little for it; a later one takes what has come.
func (s *Syncer) recall(ctx context.Context) {
	k := &s.keeper
	if s.o.Memory == nil || k.loaded {
		return
	}
	patience := time.Duration(0)
	if k.loading == nil {
		k.loading, patience = make(chan loaded, 1), s.o.Patience
		go func(result chan<- loaded) {
			ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
			defer cancel()
			defer s.Trigger()
			defer s.o.Panics.Catch("reading the memory", func(err error) { result <- loaded{err: err} })
			pods, err := s.o.Memory.Load(ctx)
			result <- loaded{pods, err}
		}(k.loading)
	}
	var got loaded
	select {
	case got = <-k.loading:
	case <-time.After(patience):
		return
	}
	k.loading = nil
	if got.err != nil && !errors.Is(got.err, kube.ErrForgotten) {
		s.memoryTrouble(got.err) // the next pass tries again
		return
	}
	if got.err != nil {
		s.o.Log.Warn("addresses are forgotten that pods had under an earlier leader", "err", got.err)
	}
	k.loaded = true
	known, all := map[string]bool{}, s.attested.All()
	for _, a := range all {
		known[a.UID] = true
	}
	for _, a := range got.pods {
		if !known[a.UID] && !a.At.After(s.o.Now()) {
			all = append(all, a)
		}
	}
	s.attested = snapshot.NewMemory(all)
	s.o.Log.Info("remembered from an earlier leader", "pods", len(got.pods))
}

// keep writes the memory and, after a pass that succeeded as a whole, the heartbeat, each when it is due.
func (s *Syncer) keep(ctx context.Context) {
	k := &s.keeper
	if s.o.Memory == nil || !k.loaded {
		return
	}
	if k.writing != nil {
		select {
		case err := <-k.writing:
			k.writing = nil
			if s.memoryTrouble(err); err != nil {
				k.kept = nil
			}
		default:
			return
		}
	}
	now := s.o.Now()
	if now.Sub(k.saved) < saveEvery && !k.saved.IsZero() {
		return
	}
	beat := s.health.good() && (k.beaten.IsZero() || now.Sub(k.beaten) >= beatEvery)
	if !beat && k.kept != nil && snapshot.SameMap(k.kept, s.attested) {
		return
	}
	if k.saved, k.kept = now, s.attested; beat {
		k.beaten = now
	}
	k.writing = make(chan error, 1)
	go func(pods []snapshot.Attested, result chan<- error) {
		ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
		defer cancel()
		defer s.o.Panics.Catch("writing the memory", func(err error) { result <- err })
		err := s.o.Memory.Save(ctx, pods)
		if beat {
			err = errors.Join(err, s.o.Memory.Beat(ctx, now))
		}
		result <- err
	}(s.attested.All(), k.writing)
}

// flush writes the memory at the end.
func (s *Syncer) flush(ctx context.Context) {
	defer s.o.Panics.Catch("writing the memory at the end", nil)
	k := &s.keeper
	if s.o.Memory == nil || !k.loaded {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	if k.writing != nil {
		select {
		case err := <-k.writing:
			s.memoryTrouble(err)
			k.writing = nil
		case <-ctx.Done():
			return
		}
	}
	s.memoryTrouble(s.o.Memory.Save(ctx, s.attested.All()))
}

// memoryTrouble logs what is new: no pass fails for it.
func (s *Syncer) memoryTrouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != s.keeper.trouble && err != nil {
		s.o.Log.Warn("cannot keep which addresses attested pods had; a replica that takes over will not know them", "err", err)
	}
	s.keeper.trouble = text
}
