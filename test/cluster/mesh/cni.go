package mesh

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// CNIAccount is the service account as which the plugin reads pods: the name of a user with exactly its rights.
const CNIAccount = "istio-cni"

// CNIPart is the plugin: its name among the parts and in a node's configuration.
const CNIPart = "istio-cni"

// CNIObjects are what the plugin needs in the cluster: to read the pod that a node is starting.
func CNIObjects() ([]*unstructured.Unstructured, error) {
	var list objects
	list.add(&corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: CNIAccount}})
	list.add(&rbacv1.ClusterRole{
		TypeMeta: typeMeta(rbacv1.SchemeGroupVersion.String(), "ClusterRole"), ObjectMeta: metav1.ObjectMeta{Name: CNIAccount},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}},
	})
	list.add(bind(CNIAccount))
	return list.out, list.err
}

// Plugin is Istio's CNI plugin on one node: it leads the connections of pods that have a sidecar through it, from outside, so
// that no container of a pod needs a capability for that.
type Plugin struct {
	// Dir is for its kubeconfig and log.
	Dir string
}

// pluginKubeconfig is the name that the plugin looks for.
const pluginKubeconfig = "istio-cni-kubeconfig"

// Prepare makes the plugin's folder. The kubeconfig is of CNIAccount, with an API address that the node reaches.
func (p Plugin) Prepare(kubeconfig []byte) error {
	if !filepath.IsAbs(p.Dir) {
		return errors.New("mesh: the CNI plugin's folder has to be an absolute path")
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("mesh: CNI plugin: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, pluginKubeconfig), kubeconfig, 0o600); err != nil {
		return fmt.Errorf("mesh: CNI plugin: %w", err)
	}
	return nil
}

// Chained is the plugin's element in the list "plugins" of a node's network configuration, to stand last. The runtime finds the
// program by the name CNIPart in its folder of plugins, and the program finds iptables on the runtime's PATH.
func (p Plugin) Chained() map[string]any {
	return map[string]any{"type": CNIPart, "plugin_log_level": "info", "cni_agent_run_dir": p.Dir, "exclude_namespaces": []string{Namespace, "kube-system"}}
}
