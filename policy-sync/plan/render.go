package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// MaxObject is how many bytes of JSON a rendered object may have: etcd takes requests of 1.5 MiB (--max-request-bytes), and an API
// server adds its own metadata.
const MaxObject = 1_400_000

// maxLate is how many renderings that outlast their time may go on beside the loop.
const maxLate = 4

// Renderer decides from a graph, and remembers what it rendered for each TrustPolicy. A policy's objects are a function of what it
// is rendered from (its flows, its namespace, the configuration), so a remembered result is the one that rendering anew would give.
// The zero value has no budget and is ready for use. One goroutine calls Decide.
//
// A policy that cannot be rendered (an error, a panic, an object that is too large, too much time) concerns that policy alone: its
// objects stay as they are, none is deleted, no pod gets its label, and Plan.Missing says why.
type Renderer struct {
	// Budget bounds one policy's rendering, and Round all that one call of Decide renders anew; zero means no bound. What is left
	// is rendered beside, or by the next call, and Result.Unfinished says so.
	Budget, Round time.Duration
	// Now is the clock that Round is measured by. Nil means that Round does not bind.
	Now func() time.Time
	// Render makes the objects of all data planes; nil means Calico's and Istio's.
	Render func(snapshot.Config, desired.Intents) ([]desired.Object, error)
	// Later is called when a rendering has ended that outlasted its budget; nil is fine.
	Later func()
	// Panicked is told of a panic and where it was; nil is fine.
	Panicked func(policy string, value any, stack []byte)

	kept kept

	mu    sync.Mutex
	known map[string]rendered // by policy's key
	late  map[string]string   // keys of policies that are being rendered beside, with their namespace
}

// rendered is what became of one policy.
type rendered struct {
	from    [sha256.Size]byte
	objects []desired.Object // the planes one after the other
	second  int              // where the second plane's begin
	why     string           // why there are no objects
}

// Result is everything that follows from a snapshot.
type Result struct {
	Graph   trustgraph.Graph
	Intents desired.Intents
	Objects []desired.Object
	Plan    Plan
	// Unfinished are policies (namespace/name) for which this round had no time; the next one goes on with them.
	Unfinished map[string]bool

	groups []*entryGroup
}

// Decide renders what the graph asks for and compares it with the snapshot that the graph is of. An error means that nothing may
// be changed.
func (r *Renderer) Decide(s snapshot.Snapshot, g trustgraph.Graph) (Result, error) {
	r.kept.begin(s.Config)
	out := Result{Graph: g, Intents: desired.Shared(g)}
	out.Intents.Workloads, out.Intents.RevokedSets = r.kept.workloadsOf(g), r.kept.revokedSets(s)
	objects, err := r.shared(s.Config, out.Intents)
	if err != nil {
		return Result{}, fmt.Errorf("plan: %w", err)
	}
	missing := map[Part]string{}
	out.Objects, out.Unfinished = r.policies(objects, s.Config, out.Intents, missing)
	var same bool
	out.groups, same = r.kept.groupsOf(out.Intents)
	out.Plan, err = r.diff(s, g, out, out.groups, same, missing)
	r.kept.sweep(len(s.Objects) + len(out.Objects))
	return out, err
}

// Entries are the SPIRE entries that should exist, sorted by ID.
func (r Result) Entries() []snapshot.Entry {
	var out []snapshot.Entry
	for _, g := range r.groups {
		out = append(out, g.wants...)
	}
	slices.SortFunc(out, func(a, b snapshot.Entry) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (r *Renderer) render(c snapshot.Config, in desired.Intents) ([]desired.Object, error) {
	if r.Render != nil {
		return r.Render(c, in)
	}
	return render(c, in)
}

// render makes the objects of all data planes.
func render(c snapshot.Config, in desired.Intents) ([]desired.Object, error) {
	var out []desired.Object
	if c.Calico {
		objects, err := calico.Render(in)
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	if c.Istio {
		objects, err := istio.Render(in)
		if err != nil {
			return nil, err
		}
		out = append(out, objects...)
	}
	return out, nil
}

// policies appends the objects of all policies to out. What is not known yet is rendered in turns, one policy of each namespace at
// a time, so that nobody's many policies keep another team's waiting.
func (r *Renderer) policies(shared []desired.Object, c snapshot.Config, in desired.Intents, missing map[Part]string) ([]desired.Object, map[string]bool) {
	list := r.kept.unitsOf(c, in)
	if k := &r.kept.all; k.list != nil && snapshot.Same(k.units, list) && snapshot.Same(k.shared, shared) {
		return k.list, nil
	}
	r.mu.Lock()
	before := r.known
	r.mu.Unlock()
	now, units, unfinished, waiting := map[string]rendered{}, map[string]unit{}, map[string]bool{}, map[string]bool{}
	turns := map[string]int{}
	var fresh []string
	for _, u := range list {
		units[u.key] = u
		if have, ok := before[u.key]; ok && have.from == u.from && u.err == nil {
			now[u.key] = have
			continue
		}
		u.turn = turns[u.namespace]
		turns[u.namespace]++
		units[u.key] = u
		fresh = append(fresh, u.key)
	}
	slices.SortStableFunc(fresh, func(a, b string) int { return units[a].turn - units[b].turn })
	inTime := r.round()
	for _, key := range fresh {
		got, done := rendered{why: "it is rendered in the next round"}, false
		if inTime() {
			got, done = r.one(units[key])
		} else {
			unfinished[key] = true
		}
		if now[key] = got; !done {
			waiting[key] = true
		}
	}
	r.keep(now, waiting)
	// As the data planes' renderers give them: one plane after the other, in each what is shared first.
	var planes [2][]desired.Object
	for _, o := range shared {
		planes[plane(o)] = append(planes[plane(o)], o)
	}
	for _, w := range in.Workloads {
		key := w.Namespace + "/" + w.Policy
		got := now[key]
		if got.why != "" {
			missing[part(Policy, key)] = got.why
			continue
		}
		planes[0] = append(planes[0], got.objects[:got.second]...)
		planes[1] = append(planes[1], got.objects[got.second:]...)
	}
	out := append(planes[0], planes[1]...)
	if r.kept.all = (allObjects{}); len(unfinished) == 0 && len(waiting) == 0 && len(missing) == 0 {
		r.kept.all = allObjects{list, shared, out}
	}
	return out, unfinished
}

// round begins a round and returns what tells whether there still is time in it.
func (r *Renderer) round() func() bool {
	if r.Round == 0 || r.Now == nil {
		return func() bool { return true }
	}
	end := r.Now().Add(r.Round)
	return func() bool { return r.Now().Before(end) }
}

func plane(o desired.Object) int {
	if strings.HasSuffix(o.GroupVersionKind().Group, "projectcalico.org") {
		return 0
	}
	return 1
}

// keep remembers what was rendered, for the policies that there are.
func (r *Renderer) keep(now map[string]rendered, waiting map[string]bool) {
	known := make(map[string]rendered, len(now))
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, got := range now {
		if !waiting[key] {
			known[key] = got
		} else if have, ok := r.known[key]; ok {
			known[key] = have // a rendering beside may have ended meanwhile
		}
	}
	r.known = known
}

// unit is what one policy's objects are rendered from.
type unit struct {
	key, namespace string
	config         snapshot.Config
	in             desired.Intents
	from           [sha256.Size]byte
	err            error
	turn           int
}

func newUnit(c snapshot.Config, in desired.Intents, w desired.Workload) unit {
	u := unit{key: w.Namespace + "/" + w.Policy, namespace: w.Namespace, config: c}
	u.in = desired.Intents{Config: in.Config, Workloads: []desired.Workload{w}}
	text, err := json.Marshal(u.in)
	u.from, u.err = sha256.Sum256(text), err
	return u
}

// one renders a policy within the budget. Done is false when it goes on beside or has to wait.
func (r *Renderer) one(u unit) (got rendered, done bool) {
	if u.err != nil {
		return rendered{why: u.err.Error()}, true
	}
	if r.Budget == 0 {
		return r.objects(u), true
	}
	if why := r.busy(u); why != "" {
		return rendered{why: why}, false
	}
	result := make(chan rendered, 1)
	go func() {
		got := r.objects(u)
		r.mu.Lock()
		_, late := r.late[u.key]
		if delete(r.late, u.key); late {
			if r.known == nil {
				r.known = map[string]rendered{}
			}
			r.known[u.key] = got
		}
		result <- got // under the lock: who holds it sees either the result or that this one is still to come
		r.mu.Unlock()
		if late && r.Later != nil {
			r.Later()
		}
	}()
	timer := time.NewTimer(r.Budget)
	defer timer.Stop()
	select {
	case got := <-result:
		return got, true
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case got := <-result:
		return got, true
	default:
	}
	if r.late == nil {
		r.late = map[string]string{}
	}
	r.late[u.key] = u.namespace
	return rendered{why: fmt.Sprintf("rendering it takes longer than %s; it goes on, and nothing of the policy changes until it is done", r.Budget)}, false
}

// busy says why a policy is not rendered now: renderings that outlasted their time go on, one of a namespace and few in all.
func (r *Renderer) busy(u unit) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, namespace := range r.late {
		if namespace == u.namespace {
			return "rendering TrustPolicy " + key + " still goes on, and one of a namespace is rendered at a time"
		}
	}
	if len(r.late) >= maxLate {
		return fmt.Sprintf("%d other policies are being rendered for longer than %s", len(r.late), r.Budget)
	}
	return ""
}

// objects renders one policy. A panic is an error of that policy.
func (r *Renderer) objects(u unit) (out rendered) {
	out.from = u.from
	defer func() {
		if p := recover(); p != nil {
			out = rendered{from: u.from, why: fmt.Sprintf("rendering it failed, which is a fault of Keelson's: %v", p)}
			if r.Panicked != nil {
				r.Panicked(u.key, p, debug.Stack())
			}
		}
	}()
	objects, err := r.render(u.config, u.in)
	if err != nil {
		return rendered{from: u.from, why: err.Error()}
	}
	var problems []error
	for _, o := range objects {
		if source(o.Unstructured) != u.key {
			continue // shared by all policies
		}
		text, err := o.MarshalJSON()
		if err == nil && len(text) > MaxObject {
			err = fmt.Errorf("%s would have %d bytes; etcd takes 1.5 MiB, so at most %d are possible: split the policy", target(o.Unstructured), len(text), MaxObject)
		}
		problems = append(problems, err)
		out.objects = append(out.objects, o)
	}
	if err := errors.Join(problems...); err != nil {
		return rendered{from: u.from, why: err.Error()}
	}
	slices.SortStableFunc(out.objects, func(a, b desired.Object) int { return plane(a) - plane(b) })
	for out.second < len(out.objects) && plane(out.objects[out.second]) == 0 {
		out.second++
	}
	return out
}
