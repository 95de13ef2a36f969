/* The part of CPython's stable ABI (3.11) that kernels use.

   It is declared here, so that building needs neither Python's headers nor the Python that will load
   the result, and any machine can build for any other. */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef intptr_t Py_ssize_t;
typedef struct PyObject PyObject;
struct PyObject {
    Py_ssize_t ob_refcnt;
    PyObject *ob_type;
};
typedef struct PyThreadState PyThreadState;

typedef struct {
    void *buf;
    PyObject *obj;
    Py_ssize_t len;
    Py_ssize_t itemsize;
    int readonly;
    int ndim;
    char *format;
    Py_ssize_t *shape;
    Py_ssize_t *strides;
    Py_ssize_t *suboffsets;
    void *internal;
} Py_buffer;

typedef PyObject *(*PyCFunctionFast)(PyObject *, PyObject *const *, Py_ssize_t);
typedef struct {
    const char *ml_name;
    PyCFunctionFast ml_meth;
    int ml_flags;
    const char *ml_doc;
} PyMethodDef;

typedef struct {
    PyObject ob_base;
    PyObject *(*m_init)(void);
    Py_ssize_t m_index;
    PyObject *m_copy;
    const char *m_name;
    const char *m_doc;
    Py_ssize_t m_size;
    PyMethodDef *m_methods;
    void *m_slots;
    void *m_traverse;
    void *m_clear;
    void *m_free;
} PyModuleDef;

enum { PyBUF_SIMPLE = 0, PyBUF_WRITABLE = 1, METH_FASTCALL = 0x80, PYTHON_API_VERSION = 1013 };

extern PyObject *PyExc_TypeError;
extern PyObject *PyExc_ValueError;

extern int PyObject_GetBuffer(PyObject *, Py_buffer *, int);
extern void PyBuffer_Release(Py_buffer *);
extern PyObject *PyErr_Format(PyObject *, const char *, ...);
extern PyObject *PyErr_NoMemory(void);
extern PyObject *PyErr_Occurred(void);
extern long long PyLong_AsLongLong(PyObject *);
extern PyObject *PyLong_FromLongLong(long long);
extern PyObject *PyModule_Create2(PyModuleDef *, int);
extern int PyModule_AddObjectRef(PyObject *, const char *, PyObject *);
extern int PyModule_AddStringConstant(PyObject *, const char *, const char *);
extern PyThreadState *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(PyThreadState *);
extern void Py_IncRef(PyObject *);
extern void Py_DecRef(PyObject *);
extern PyObject _Py_NoneStruct;

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#endif
