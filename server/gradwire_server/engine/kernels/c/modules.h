/* The modules of one extension: one for each floating type, and one for what knows no numbers. */
#pragma once

#include "python.h"

#define MODULE(name, methods) \
    {.ob_base = {1, NULL}, .m_name = name, .m_size = -1, .m_methods = methods}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

/* Adds what is a new reference, or NULL after an error; -1 where that fails. */
static inline int add(PyObject *module, const char *name, PyObject *part) {
    if (!part) return -1;
    const int status = PyModule_AddObjectRef(module, name, part);
    Py_DecRef(part);
    return status;
}

/* A module with the digest of what it was made from. */
static inline PyObject *make_part(PyModuleDef *definition, const char *digest) {
    PyObject *module = PyModule_Create2(definition, PYTHON_API_VERSION);
    if (module && PyModule_AddStringConstant(module, "DIGEST", digest)) {
        Py_DecRef(module);
        return NULL;
    }
    return module;
}

PyObject *make_float64(void);
PyObject *make_float32(void);
PyObject *make_scheduling(void);
