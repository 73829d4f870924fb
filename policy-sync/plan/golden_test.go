package plan_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// TestGoldens: every archive in testdata is a cluster and what follows from it.
//
//	snapshot.yaml  the cluster, in Kubernetes' own words; UIDs, EK hashes, agent IDs and
//	               times may be left out (snapshottest's are taken)
//	change.yaml    objects to put in place of those of snapshot.yaml, after everything
//	               that follows from it has been written; then only plan.txt and
//	               status.txt are about the change
//	objects.yaml   the Calico and Istio objects
//	entries.txt    the SPIRE entries
//	plan.txt       what to do, in order
//	status.txt     what the policies' status and the reports say
//
// Any other file name fails the test. "go test ./policy-sync/plan -update" rewrites the
// last four.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]string{}
	for _, f := range archive.Files {
		if !slices.Contains([]string{"snapshot.yaml", "change.yaml", "objects.yaml", "entries.txt", "plan.txt", "status.txt"}, f.Name) {
			t.Fatalf("file %s means nothing here", f.Name)
		}
		in[f.Name] = string(f.Data)
	}
	w := &world{Snapshot: snapshot.Snapshot{At: snapshottest.Now, SPIRE: &snapshot.SPIRE{}, Images: map[snapshot.ImageKey]snapshot.Image{}}}
	load(t, w, in["snapshot.yaml"])
	r := mustMake(t, w.Snapshot)
	if in["change.yaml"] != "" {
		w.settle(t, nil)
		load(t, w, in["change.yaml"])
		r = mustMake(t, w.Snapshot)
	}
	got := map[string]string{"objects.yaml": objectsText(t, r), "entries.txt": entriesText(r), "plan.txt": r.Plan.String(), "status.txt": statusText(r)}
	if *update {
		write(t, file, archive, in, got)
		return
	}
	for name, text := range got {
		if _, ok := in[name]; !ok && in["change.yaml"] != "" {
			continue
		}
		if diff := cmp.Diff(in[name], text); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func write(t *testing.T, file string, archive *txtar.Archive, in, got map[string]string) {
	t.Helper()
	archive.Files = nil
	for _, name := range []string{"snapshot.yaml", "change.yaml"} {
		if in[name] != "" {
			archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(in[name])})
		}
	}
	names := []string{"objects.yaml", "entries.txt", "plan.txt", "status.txt"}
	if in["change.yaml"] != "" {
		names = names[2:]
	}
	for _, name := range names {
		archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(got[name])})
	}
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// load adds the documents of a YAML stream to the world, in place of what has the same
// kind and name.
func load(t *testing.T, w *world, text string) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var head metav1.TypeMeta
		strictly(t, doc, &head, false)
		switch head.Kind {
		case "Config":
			loadConfig(t, w, doc)
		case "Images":
			loadImages(t, w, doc)
		case "Agents":
			var a struct {
				metav1.TypeMeta `json:",inline"`
				Nodes           []string `json:"nodes"`
			}
			strictly(t, doc, &a, true)
			for _, n := range a.Nodes {
				w.SPIRE.Agents = append(w.SPIRE.Agents, snapshot.Agent{ID: snapshottest.AgentID(n), Type: "keelson_tpm"})
			}
		case "Entry":
			var e struct {
				metav1.TypeMeta `json:",inline"`
				snapshot.Entry  `json:",inline"`
			}
			strictly(t, doc, &e, true)
			w.SPIRE.Entries = append(w.SPIRE.Entries, e.Entry)
		case "Node":
			w.Nodes = put(w.Nodes, complete(t, doc, func(n *corev1.Node) *metav1.ObjectMeta { return &n.ObjectMeta }))
		case "Namespace":
			w.Namespaces = put(w.Namespaces, complete(t, doc, func(n *corev1.Namespace) *metav1.ObjectMeta { return &n.ObjectMeta }))
		case "Pod":
			p := complete(t, doc, func(n *corev1.Pod) *metav1.ObjectMeta { return &n.ObjectMeta })
			w.Pods = slices.DeleteFunc(w.Pods, func(q *corev1.Pod) bool { return snapshot.Key(q) == snapshot.Key(&p) })
			w.Pods = append(w.Pods, &p)
		case "TrustPolicy":
			w.Policies = put(w.Policies, complete(t, doc, func(n *v1alpha1.TrustPolicy) *metav1.ObjectMeta { return &n.ObjectMeta }))
		case "NodeTrust":
			trust := complete(t, doc, func(n *v1alpha1.NodeTrust) *metav1.ObjectMeta { return &n.ObjectMeta })
			whole := snapshottest.Trust(trust.Name, "")
			trust.Spec.EKHash, trust.Spec.AgentID = snapshottest.EK(trust.Name), snapshottest.AgentID(trust.Name)
			trust.Spec.AttestedAt, trust.Spec.ValidUntil = whole.Spec.AttestedAt, whole.Spec.ValidUntil
			if i := slices.IndexFunc(w.Nodes, func(n corev1.Node) bool { return n.Name == trust.Name }); i >= 0 {
				trust.Spec.NodeUID = string(w.Nodes[i].UID) // the document's Nodes stand before its NodeTrusts
			}
			w.NodeTrusts = put(w.NodeTrusts, trust)
		default:
			o := &unstructured.Unstructured{}
			strictly(t, doc, &o.Object, false)
			w.Objects = append(w.Objects, o)
		}
	}
}

func strictly(t *testing.T, doc string, into any, strict bool) {
	t.Helper()
	read := yaml.Unmarshal
	if strict {
		read = yaml.UnmarshalStrict
	}
	if err := read([]byte(doc), into); err != nil {
		t.Fatalf("%v in:\n%s", err, doc)
	}
}

func loadConfig(t *testing.T, w *world, doc string) {
	t.Helper()
	var c struct {
		metav1.TypeMeta `json:",inline"`
		Calico, Istio   bool
		Taint           bool
		MaxHold         string
	}
	strictly(t, doc, &c, true)
	w.Config = snapshot.Config{TrustDomain: snapshottest.TrustDomain, X509SVIDTTL: time.Minute, Calico: c.Calico, Istio: c.Istio, Taint: c.Taint}
	if c.MaxHold != "" {
		d, err := time.ParseDuration(c.MaxHold)
		if err != nil {
			t.Fatal(err)
		}
		w.Config.MaxHold = d
	}
}

// loadImages reads what verifiers say: "image: verifier, verifier".
func loadImages(t *testing.T, w *world, doc string) {
	t.Helper()
	var i struct {
		metav1.TypeMeta `json:",inline"`
		SignedBy        map[string][]string `json:"signedBy"`
	}
	strictly(t, doc, &i, true)
	for image, verifiers := range i.SignedBy {
		s := snapshottest.Status("", image)
		out := snapshot.Image{Manifests: []string{snapshottest.Digest(image)}, Verifiers: map[string]snapshot.Verification{
			"release-key": {Reason: "no signature by this key"},
		}}
		for _, v := range verifiers {
			out.Verifiers[v] = snapshot.Verification{Accepted: true}
		}
		w.Images[snapshot.ImageKey{Image: s.Image, ImageID: s.ImageID}] = out
	}
}

// complete reads an object and gives it what an API server would have; a pod's containers
// get a status that names their image.
func complete[T any](t *testing.T, doc string, meta func(*T) *metav1.ObjectMeta) T {
	t.Helper()
	var out T
	strictly(t, doc, &out, true)
	m := meta(&out)
	m.UID, m.ResourceVersion, m.CreationTimestamp = snapshottest.UID(fmt.Sprintf("%T", out), m.Namespace+"/"+m.Name), "7", metav1.NewTime(snapshottest.Now.Add(-time.Hour))
	if p, ok := any(&out).(*corev1.Pod); ok {
		for _, c := range p.Spec.Containers {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, snapshottest.Status(c.Name, c.Image))
		}
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	return out
}

func put[T any, P interface {
	*T
	metav1.Object
}](list []T, o T) []T {
	name := snapshot.Key(P(&o))
	for i := range list {
		if snapshot.Key(P(&list[i])) == name {
			list[i] = o
			return list
		}
	}
	return append(list, o)
}

func objectsText(t *testing.T, r plan.Result) string {
	t.Helper()
	var docs []string
	for _, o := range r.Objects {
		data, err := yaml.Marshal(runtime.DeepCopyJSON(o.Object))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, string(data))
	}
	return strings.Join(docs, "---\n")
}

func entriesText(r plan.Result) string {
	var b bytes.Buffer
	for _, e := range r.Entries() {
		fmt.Fprintf(&b, "%s\n  id      %s\n  parent  %s\n", e.ID, e.SPIFFEID, e.ParentID)
		for _, s := range e.Selectors {
			fmt.Fprintf(&b, "  %s\n", s)
		}
	}
	return b.String()
}

func statusText(r plan.Result) string {
	var b bytes.Buffer
	for _, p := range r.Graph.Policies {
		st := r.Graph.Status(p, nil)
		fmt.Fprintf(&b, "%s: %d of %d attested\n", p.Key(), st.Attested, st.Selected)
		for _, c := range st.Conditions {
			fmt.Fprintf(&b, "  %s=%s %s %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
		for _, p := range st.Refused {
			fmt.Fprintf(&b, "  refused %s: %s\n", p.Pod, p.Reason)
		}
		for _, n := range st.Notes {
			fmt.Fprintf(&b, "  note: %s\n", n)
		}
	}
	for _, text := range r.Graph.Reports {
		fmt.Fprintf(&b, "report: %s\n", text)
	}
	lines := strings.Split(b.String(), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
