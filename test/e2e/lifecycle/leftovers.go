package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// leftovers are the objects, of whatever kind the API serves, that bear a trace of Keelson's, and SPIRE's entries of its making.
func leftovers(ctx context.Context, s *stage.Stage) ([]string, error) {
	config := rest.CopyConfig(s.Cluster.RESTConfig())
	config.WarningHandler = rest.NoWarnings{} // that a kind is deprecated is no news here
	config.QPS, config.Burst = 500, 500       // it asks for every kind
	discover, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	lists, err := discover.ServerPreferredResources()
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	var left []string
	for _, list := range lists {
		for i := range list.APIResources {
			if !slices.Contains(list.APIResources[i].Verbs, "list") {
				continue
			}
			found, err := traces(ctx, client, list.GroupVersion, list.APIResources[i].Name)
			if err != nil {
				return nil, err
			}
			left = append(left, found...)
		}
	}
	entries, err := s.SPIREServer(ctx, "entry", "show")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(entries) {
		if _, id, ok := strings.Cut(line, "Entry ID"); ok && strings.Contains(id, v1alpha1.EntryIDPrefix) {
			left = append(left, "SPIRE entry"+strings.TrimSpace(id))
		}
	}
	return left, nil
}

func traces(ctx context.Context, client dynamic.Interface, groupVersion, resource string) ([]string, error) {
	gv, err := schema.ParseGroupVersion(groupVersion)
	if err != nil {
		return nil, fmt.Errorf("lifecycle: %w", err)
	}
	if gv.Group == v1alpha1.Group || gv.Group == "metrics.k8s.io" || gv.Group == "events.k8s.io" || gv.Group == "" && resource == "events" {
		return nil, nil // what people and SPIRE's servers wrote, and what the API forgets by itself
	}
	objects, err := client.Resource(gv.WithResource(resource)).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lifecycle: list %s %s: %w", groupVersion, resource, err)
	}
	var found []string
	for i := range objects.Items {
		o := &objects.Items[i]
		if why := trace(o); why != "" {
			found = append(found, strings.TrimSpace(fmt.Sprintf("%s %s %s (%s)", o.GetKind(), o.GetNamespace(), o.GetName(), why)))
		}
	}
	return found, nil
}

// names are how those of policy-sync's and the chart's objects begin that bear no label: leases, Helm's own notes, what hooks made. (The
// roles of SPIRE's plugins are the operator's, from examples/spire.)
var names = []string{"keelson.", "keelson-policy-sync", "keelson-node", "keelson-cleanup", "sh.helm.release.v1." + stage.Release + "."}

// trace says why an object is Keelson's or bears something of its; empty when it does not.
func trace(o *unstructured.Unstructured) string {
	switch o.GetKind() {
	case "CustomResourceDefinition", "APIService":
		if strings.HasSuffix(o.GetName(), "."+v1alpha1.Group) {
			return "" // Helm never deletes them
		}
	case "Profile":
		return "" // Calico's view of namespaces and accounts
	}
	for k, v := range o.GetLabels() {
		ours := strings.Contains(k, "keelson") || strings.HasPrefix(v, "keelson") && k != corev1.LabelMetadataName
		if ours && k != v1alpha1.ModeLabel {
			return "label " + k + "=" + v
		}
	}
	if o.GetAnnotations()["meta.helm.sh/release-name"] == stage.Release {
		return "the release's"
	}
	taints, _, _ := unstructured.NestedSlice(o.Object, "spec", "taints") // none is an answer
	if strings.Contains(fmt.Sprint(taints), "keelson") {
		return "taint"
	}
	starts := func(prefix string) bool { return strings.HasPrefix(o.GetName(), prefix) }
	operators := o.GetNamespace() == "spire" || o.GetKind() == "Namespace" || o.GetName() == "keelson-nodeattestor"
	if slices.ContainsFunc(names, starts) && !operators {
		return "its name"
	}
	return ""
}
