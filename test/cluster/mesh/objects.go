package mesh

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// objects collects typed objects in the form that the cluster applies.
type objects struct {
	out []*unstructured.Unstructured
	err error
}

func (l *objects) add(o runtime.Object) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil && l.err == nil {
		l.err = fmt.Errorf("mesh: %T: %w", o, err)
	}
	delete(content, "status") // the cluster's to write
	l.out = append(l.out, &unstructured.Unstructured{Object: content})
}

func typeMeta(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}
