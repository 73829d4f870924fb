package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/keelson-project/keelson/test/parts"
)

// Apply writes every object of some YAML or JSON documents to the API as the administrator, by server-side apply, and waits
// until the custom resources that they define are served.
func (c *Cluster) Apply(ctx context.Context, documents ...[]byte) error {
	var objects []*unstructured.Unstructured
	for _, d := range documents {
		more, err := decode(d)
		if err != nil {
			return err
		}
		objects = append(objects, more...)
	}
	return c.ApplyObjects(ctx, objects...)
}

// ApplyDir applies every .yaml file of a folder.
func (c *Cluster) ApplyDir(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return fmt.Errorf("cluster: %s: %w", dir, err)
	}
	if len(files) == 0 {
		return fmt.Errorf("cluster: %s: no .yaml files", dir)
	}
	var documents [][]byte
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
		documents = append(documents, content)
	}
	return c.Apply(ctx, documents...)
}

func decode(documents []byte) ([]*unstructured.Unstructured, error) {
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(documents)))
	var objects []*unstructured.Unstructured
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cluster: apply: %w", err)
		}
		content := map[string]any{}
		if err := yaml.Unmarshal(document, &content); err != nil {
			return nil, fmt.Errorf("cluster: apply: %w", err)
		}
		if len(content) > 0 { // a document may hold comments alone
			objects = append(objects, &unstructured.Unstructured{Object: content})
		}
	}
}

// ApplyObjects is Apply for objects that are decoded already.
func (c *Cluster) ApplyObjects(ctx context.Context, objects ...*unstructured.Unstructured) error {
	client, mapper, err := c.dynamic()
	if err != nil {
		return err
	}
	var definitions []*unstructured.Unstructured
	for _, o := range objects {
		if err := applyOne(ctx, client, mapper, o); err != nil {
			return err
		}
		if o.GetKind() == "CustomResourceDefinition" {
			definitions = append(definitions, o)
		}
	}
	return served(ctx, client, definitions)
}

func applyOne(ctx context.Context, client dynamic.Interface, mapper meta.RESTMapper, o *unstructured.Unstructured) error {
	resource, err := resourceOf(client, mapper, o)
	if err != nil {
		return err
	}
	_, err = resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "keelson-test", Force: true})
	if err != nil {
		return fmt.Errorf("cluster: apply %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// resourceOf is where an object of its kind and namespace is read and written.
func resourceOf(client dynamic.Interface, mapper meta.RESTMapper, o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, fmt.Errorf("cluster: %s %s: %w", gvk, o.GetName(), err)
	}
	var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		namespace := o.GetNamespace()
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		resource = client.Resource(mapping.Resource).Namespace(namespace)
	}
	return resource, nil
}

// Remove deletes the objects of some documents.
func (c *Cluster) Remove(ctx context.Context, documents ...[]byte) error {
	client, mapper, err := c.dynamic()
	if err != nil {
		return err
	}
	for _, d := range documents {
		objects, err := decode(d)
		if err != nil {
			return err
		}
		for _, o := range objects {
			resource, err := resourceOf(client, mapper, o)
			if err != nil {
				return err
			}
			if err := resource.Delete(ctx, o.GetName(), metav1.DeleteOptions{}); err != nil {
				return fmt.Errorf("cluster: delete %s %s: %w", o.GetKind(), o.GetName(), err)
			}
		}
	}
	return nil
}

func (c *Cluster) dynamic() (dynamic.Interface, meta.RESTMapper, error) {
	client, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(c.RESTConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: %w", err)
	}
	return client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco)), nil
}

// served waits until the API server has accepted and serves every definition.
func served(ctx context.Context, client dynamic.Interface, definitions []*unstructured.Unstructured) error {
	resource := client.Resource(apiextensions.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	for _, d := range definitions {
		err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			got, err := resource.Get(ctx, d.GetName(), metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			var crd apiextensions.CustomResourceDefinition
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &crd); err != nil {
				return false, err
			}
			for _, condition := range crd.Status.Conditions {
				if condition.Type == apiextensions.Established && condition.Status == apiextensions.ConditionTrue {
					return true, nil
				}
			}
			return false, nil
		})
		if err != nil {
			return fmt.Errorf("cluster: %s is not served: %w", d.GetName(), err)
		}
	}
	return nil
}

// installIstioCRDs installs the definitions that Istio's own base chart holds.
func (c *Cluster) installIstioCRDs(ctx context.Context) error {
	dir, err := parts.ModuleDir(ctx, "istio", "istio.io/istio")
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(dir, "manifests", "charts", "base", "files", "crd-all.gen.yaml"))
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return c.Apply(ctx, content)
}
