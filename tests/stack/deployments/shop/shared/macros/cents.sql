{% macro in_units(cents) %}({{ cents }} / 100.0){% endmacro %}
