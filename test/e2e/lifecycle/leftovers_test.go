package lifecycle

import (
	"testing"

	"sigs.k8s.io/yaml"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestTracesOfKeelson(t *testing.T) {
	for name, c := range map[string]struct {
		object string
		want   string
	}{
		"a trust label": {`{kind: Pod, metadata: {name: a, labels: {trust.keelson.io/attested: "true"}}}`, "label trust.keelson.io/attested=true"},
		"a pod of the Deployment": {`{kind: Pod, metadata: {name: a, labels: {app.kubernetes.io/name: keelson-policy-sync}}}`,
			"label app.kubernetes.io/name=keelson-policy-sync"},
		"a node's verdict":                  {`{kind: Node, metadata: {name: a, labels: {keelson.node-restriction.kubernetes.io/verdict: trusted}}}`, "label keelson.node-restriction.kubernetes.io/verdict=trusted"},
		"a node's taint":                    {`{kind: Node, metadata: {name: a}, spec: {taints: [{key: trust.keelson.io/untrusted, effect: NoSchedule}]}}`, "taint"},
		"an object of the release":          {`{kind: ClusterRole, metadata: {name: a, annotations: {meta.helm.sh/release-name: keelson}}}`, "the release's"},
		"a policy in the tier":              {`{kind: GlobalNetworkPolicy, metadata: {name: keelson.revoked}}`, "its name"},
		"the hook's role":                   {`{kind: Role, metadata: {name: keelson-cleanup, namespace: keelson-system}}`, "its name"},
		"Helm's note":                       {`{kind: Secret, metadata: {name: sh.helm.release.v1.keelson.v2, namespace: keelson-system}}`, "its name"},
		"the lease":                         {`{kind: Lease, metadata: {name: keelson-policy-sync, namespace: keelson-system}}`, "its name"},
		"enrolment, which is an admin's":    {`{kind: Namespace, metadata: {name: bank, labels: {trust.keelson.io/mode: enforce}}}`, ""},
		"the namespace of the chart":        {`{kind: Namespace, metadata: {name: keelson-system, labels: {kubernetes.io/metadata.name: keelson-system}}}`, ""},
		"a definition":                      {`{kind: CustomResourceDefinition, metadata: {name: nodetrusts.trust.keelson.io}}`, ""},
		"the SPIRE server's reference sets": {`{kind: ConfigMap, metadata: {name: keelson-references, namespace: spire}}`, ""},
		"the SPIRE plugins' role":           {`{kind: ClusterRole, metadata: {name: keelson-nodeattestor}}`, ""},
		"somebody else's":                   {`{kind: Pod, metadata: {name: a, labels: {app: a}}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(c.object), &o.Object); err != nil {
				t.Fatal(err)
			}
			if got := trace(o); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
