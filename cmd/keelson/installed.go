package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// What the chart calls policy-sync's Deployment, ConfigMap and container, and where its configuration is mounted.
const (
	installedName      = "keelson-policy-sync"
	installedKeys      = "keelson-policy-sync-keys"
	installedContainer = "policy-sync"
	installedPath      = "/etc/keelson/policy-sync.yaml"
)

// inPod is how to ask where policy-sync's own configuration, SPIRE socket and registries are.
func inPod(namespace, command string) string {
	return fmt.Sprintf("kubectl -n %s exec deploy/%s -- /keelson %s --config %s", namespace, installedName, command, installedPath)
}

// installation reads files as policy-sync's container sees them, out of the ConfigMaps and Secrets that its Deployment mounts. It
// reads those alone in which something is that the configuration names.
type installation struct {
	api       kubernetes.Interface
	namespace string
	mounts    []mounted
	config    string
	// used are the objects that were read, in order.
	used []string
}

// mounted is an object that is mounted at a path. Without items each key is a file.
type mounted struct {
	at     string
	secret bool
	name   string
	items  []corev1.KeyToPath
	// sub is the one file of the object that is mounted, at the path itself.
	sub string
}

// byChart is what the chart mounts, where there is no Deployment to ask.
var byChart = []mounted{
	{at: path.Dir(installedPath), name: installedName, items: []corev1.KeyToPath{{Key: path.Base(installedPath), Path: path.Base(installedPath)}}},
	{at: path.Join(path.Dir(installedPath), "keys"), name: installedKeys},
}

// openInstallation looks at policy-sync's Deployment.
func openInstallation(ctx context.Context, api kubernetes.Interface, namespace string) (*installation, error) {
	i := &installation{api: api, namespace: namespace, mounts: byChart, config: installedPath}
	d, err := api.AppsV1().Deployments(namespace).Get(ctx, installedName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return i, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at Deployment %s/%s: %w", namespace, installedName, err)
	}
	pod := d.Spec.Template.Spec
	n := slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == installedContainer })
	if n < 0 {
		return i, nil
	}
	i.mounts = nil
	for _, m := range pod.Containers[n].VolumeMounts {
		for _, v := range pod.Volumes {
			if v.Name == m.Name {
				i.mount(m, v)
			}
		}
	}
	args := pod.Containers[n].Args
	for k, a := range args {
		if value, ok := strings.CutPrefix(a, "--config="); ok {
			i.config = value
		}
		if a == "--config" && k+1 < len(args) {
			i.config = args[k+1]
		}
	}
	return i, nil
}

func (i *installation) mount(m corev1.VolumeMount, v corev1.Volume) {
	add := func(secret bool, name string, items []corev1.KeyToPath) {
		i.mounts = append(i.mounts, mounted{at: path.Clean(m.MountPath), secret: secret, name: name, items: items, sub: m.SubPath})
	}
	switch {
	case v.ConfigMap != nil:
		add(false, v.ConfigMap.Name, v.ConfigMap.Items)
	case v.Secret != nil:
		add(true, v.Secret.SecretName, v.Secret.Items)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				add(false, s.ConfigMap.Name, s.ConfigMap.Items)
			case s.Secret != nil:
				add(true, s.Secret.Name, s.Secret.Items)
			}
		}
	}
}

// key is which key of the object is at a path of the container.
func (m mounted) key(file string) (string, bool) {
	rel, inside := strings.CutPrefix(file, m.at+"/")
	if m.sub != "" {
		rel, inside = m.sub, file == m.at
	}
	if !inside {
		return "", false
	}
	if len(m.items) == 0 {
		return rel, !strings.Contains(rel, "/")
	}
	for _, item := range m.items {
		if item.Path == rel {
			return item.Key, true
		}
	}
	return "", false
}

// read returns a file of the container; false when nothing that is mounted has it.
func (i *installation) read(ctx context.Context, file string) ([]byte, bool, error) {
	for _, m := range i.mounts {
		key, ok := m.key(path.Clean(file))
		if !ok {
			continue
		}
		content, found, err := i.get(ctx, m, key)
		if err != nil || found {
			return content, found, err
		}
	}
	return nil, false, nil
}

func (i *installation) get(ctx context.Context, m mounted, key string) (content []byte, found bool, err error) {
	what := fmt.Sprintf("ConfigMap %s/%s", i.namespace, m.name)
	if m.secret {
		what = fmt.Sprintf("Secret %s/%s", i.namespace, m.name)
		var s *corev1.Secret
		if s, err = i.api.CoreV1().Secrets(i.namespace).Get(ctx, m.name, metav1.GetOptions{}); err == nil {
			content, found = s.Data[key]
		}
	} else {
		var c *corev1.ConfigMap
		if c, err = i.api.CoreV1().ConfigMaps(i.namespace).Get(ctx, m.name, metav1.GetOptions{}); err == nil {
			if content, found = c.BinaryData[key]; !found {
				var text string
				text, found = c.Data[key]
				content = []byte(text)
			}
		}
	}
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", what, err)
	}
	if found && !slices.Contains(i.used, what) {
		i.used = append(i.used, what)
	}
	return content, found, nil
}

// settings are policy-sync's own. Files that it names are read from where they are mounted from and placed in dir, which has to stay
// as long as the settings are used.
func (i *installation) settings(ctx context.Context, dir string) (syncconfig.Config, error) {
	content, found, err := i.read(ctx, i.config)
	if err != nil {
		return syncconfig.Config{}, err
	}
	if !found {
		return syncconfig.Config{}, fmt.Errorf("there is no configuration of policy-sync in namespace %s (ConfigMap %s, key %s): say where with --namespace, "+
			"or give --config, or --trust-domain", i.namespace, installedName, path.Base(i.config))
	}
	var root yaml.Node
	if err := yaml.Unmarshal(content, &root); err != nil {
		return syncconfig.Config{}, fmt.Errorf("%s: %w", i.used[0], err)
	}
	if err := i.place(ctx, dir, &root); err != nil {
		return syncconfig.Config{}, err
	}
	placed, err := yaml.Marshal(&root)
	if err != nil {
		return syncconfig.Config{}, fmt.Errorf("%s: %w", i.used[0], err)
	}
	c, err := syncconfig.Parse(placed)
	if err != nil {
		return c, fmt.Errorf("%s, read here:\n%w\nWhere policy-sync runs, everything is that it names: %s", i.used[0], err, inPod(i.namespace, "plan"))
	}
	return c, nil
}

// elsewhere are keys whose values are no files of policy-sync's container.
var elsewhere = []string{"allowedHostPaths", "spire"}

// place writes the files that the configuration names into dir, and names those instead. Which kubeconfig is used says who asks.
func (i *installation) place(ctx context.Context, dir string, n *yaml.Node) error {
	if n.Kind == yaml.MappingNode {
		for k := 0; k+1 < len(n.Content); k += 2 {
			if n.Content[k].Value == "kubeconfig" {
				n.Content = slices.Delete(n.Content, k, k+2)
				return i.place(ctx, dir, n)
			}
			if slices.Contains(elsewhere, n.Content[k].Value) {
				continue
			}
			if err := i.place(ctx, dir, n.Content[k+1]); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range n.Content {
		if err := i.place(ctx, dir, c); err != nil {
			return err
		}
	}
	if n.Kind != yaml.ScalarNode || !strings.HasPrefix(n.Value, "/") {
		return nil
	}
	content, found, err := i.read(ctx, n.Value)
	if err != nil || !found {
		return err
	}
	f, err := os.CreateTemp(dir, "*-"+filepath.Base(n.Value))
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	n.Value = f.Name()
	return errors.Join(err, f.Close())
}
